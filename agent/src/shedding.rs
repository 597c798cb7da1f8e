//! Keeps the CPU budget by leaving evidence out, that which costs most and tells least first.

/// What is left out; each step keeps out what the one before left out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Shed {
    /// Nothing.
    #[default]
    Nothing,
    /// What the models say of a window: first-time acts alone are judged.
    Models,
    /// Ordinary opens of files, too. Sensitive files are told all the same. The models must not be asked then: a window's file
    /// counts come of them.
    Opens,
}

impl Shed {
    /// The layers that do not see everything while this is left out, as alerts name them.
    #[must_use]
    pub fn layers(self) -> &'static [&'static str] {
        match self {
            Self::Nothing => &[],
            Self::Models => &[MODELS],
            Self::Opens => &["file", MODELS],
        }
    }

    /// In words.
    #[must_use]
    pub fn text(self) -> &'static str {
        match self {
            Self::Nothing => "all evidence is gathered",
            Self::Models => "first-time acts alone are judged",
            Self::Opens => {
                "first-time acts alone are judged, ordinary opens of files are not told, and nothing is learned"
            }
        }
    }

    fn more(self) -> Self {
        if self == Self::Nothing { Self::Models } else { Self::Opens }
    }

    fn less(self) -> Self {
        if self == Self::Opens { Self::Models } else { Self::Nothing }
    }
}

/// In the list of layers that were not fully seen: the models were not asked.
pub const MODELS: &str = "models";

/// Over less time than this the CPU clock's step of 10 ms is too coarse.
const MEASURE_NS: u64 = 1_000_000_000;
/// Below this part of the budget there is room for more.
const ROOM: f64 = 0.5;
/// How often in turn there must be room before more is gathered again: what was left out costs something too.
const CALM: u32 = 10;

/// How much the agent took, and what follows.
#[derive(Debug)]
pub struct Shedding {
    shed: Shed,
    /// CPU time and clock of the last measurement.
    last: (u64, u64),
    /// Measurements in turn that had room.
    calm: u32,
}

impl Shedding {
    /// Counts from now on.
    #[must_use]
    pub fn new(cpu_ms: u64, boot_ns: u64) -> Self {
        Self { shed: Shed::Nothing, last: (cpu_ms, boot_ns), calm: 0 }
    }

    /// What is left out.
    #[must_use]
    pub fn shed(&self) -> Shed {
        self.shed
    }

    /// At a window's end: what is left out from now on, with the percentage of one core that was taken, when that changes.
    pub fn measure(&mut self, budget: Option<u32>, cpu_ms: u64, boot_ns: u64) -> Option<(Shed, f64)> {
        let (cpu_before, before) = self.last;
        let took_ns = boot_ns.saturating_sub(before);
        if took_ns < MEASURE_NS {
            return None;
        }
        self.last = (cpu_ms, boot_ns);
        #[allow(clippy::cast_precision_loss, reason = "times of one window")]
        let share = cpu_ms.saturating_sub(cpu_before) as f64 * 1e8 / took_ns as f64;
        let is = self.shed;
        let budget = budget.map_or(f64::INFINITY, f64::from);
        if share > budget {
            self.calm = 0;
            self.shed = is.more();
        } else if share < ROOM * budget {
            self.calm += 1;
            if self.calm >= CALM {
                self.calm = 0;
                self.shed = is.less();
            }
        } else {
            self.calm = 0;
        }
        (self.shed != is).then_some((self.shed, share))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: u64 = 1_000_000_000;

    #[test]
    fn evidence_is_left_out_step_by_step_and_gathered_again_when_there_is_room() {
        let (mut shedding, mut cpu_ms, mut at) = (Shedding::new(500, 0), 500, 0);
        let mut window = |percent: u64, budget| {
            at += 30 * S;
            cpu_ms += percent * 300;
            shedding.measure(budget, cpu_ms, at).map(|(shed, _)| shed)
        };
        assert_eq!(window(19, Some(20)), None);
        assert_eq!(window(21, Some(20)), Some(Shed::Models));
        assert_eq!(window(15, Some(20)), None, "neither over it nor room for more");
        assert_eq!(window(25, Some(20)), Some(Shed::Opens));
        assert_eq!(window(25, Some(20)), None, "there is no more to leave out");
        for _ in 0..9 {
            assert_eq!(window(5, Some(20)), None);
        }
        assert_eq!(window(5, Some(20)), Some(Shed::Models));
        for _ in 0..9 {
            assert_eq!(window(5, Some(20)), None);
        }
        assert_eq!(window(12, Some(20)), None, "it begins anew");
        for n in 0..10 {
            assert_eq!(window(5, None), (n == 9).then_some(Shed::Nothing), "without a budget there is room");
        }
        assert_eq!(window(900, None), None);
        let mut short = Shedding::new(0, 0);
        assert_eq!(short.measure(Some(1), 900, S / 2), None);
        assert_eq!(short.measure(Some(1), 900, S), Some((Shed::Models, 90.0)));
    }
}

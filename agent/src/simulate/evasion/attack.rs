//! On the agent itself: tracing it, holding it up, ending it. Only with `--agent`, on the process that is named there.

use std::thread;
use std::time::Duration;

use super::Evasion;
use crate::simulate::family::word;
use crate::simulate::sandbox::{Problem, Sandbox, step};
use crate::simulate::sys;
use crate::simulate::table::{Log, Need, Sign, Threat, Variant};

const SEIZE: u32 = 0x4206;
const HELD_UP: Duration = Duration::from_secs(2);

pub(crate) const EVASION: Evasion = Evasion {
    threat: Threat { name: "attack-on-the-agent", techniques: &["T1562", "T1055"], variants: VARIANTS },
    seen: "who traces it, as an act of injection; its end, by the server as silence and at the next start as `killed`; what was done while it was held up, when it goes on: the rings keep it",
    unseen: "what is done between its end and its next start (`Restart=always` in the unit makes that short), and what is made of it once it is traced",
};

macro_rules! attack {
    ($name:literal, $techniques:expr, $summary:literal, $layer:literal, $act:expr, |$agent:ident| $sign:expr) => {
        Variant {
            name: $name,
            techniques: $techniques,
            summary: $summary,
            layer: $layer,
            needs: &[Need::Root],
            log: Log::No,
            prepare: |stage| {
                let $agent = stage.agent()?;
                Ok(stage.own([$agent])?.sign($sign))
            },
            act: Some($act),
        }
    };
}

const VARIANTS: &[Variant] = &[
    attack!(
        "trace",
        &["T1562.001", "T1055.008"],
        "seizes the agent with ptrace and lets it go",
        "injection",
        |sandbox, words| step("seizing", sys::ptrace(SEIZE, agent(sandbox, words)?, 0, 0)),
        |agent| Sign::Inject { victim: agent, call: "ptrace" }
    ),
    attack!(
        "hold-up",
        &["T1562.001"],
        "stops the agent for two seconds by SIGSTOP and SIGCONT",
        "syscall",
        |sandbox, words| {
            let agent = agent(sandbox, words)?;
            step("stopping it", sys::signal(agent, libc::SIGSTOP))?;
            thread::sleep(HELD_UP);
            step("letting it go on", sys::signal(agent, libc::SIGCONT))
        },
        |_agent| Sign::Calls { call: "kill" }
    ),
    attack!(
        "kill",
        &["T1562.001"],
        "kills the agent by SIGKILL; what started it must start it again",
        "syscall",
        |sandbox, words| step("killing it", sys::signal(agent(sandbox, words)?, libc::SIGKILL)),
        |_agent| Sign::Calls { call: "kill" }
    ),
];

fn agent(sandbox: &Sandbox, words: &[String]) -> Result<u32, Problem> {
    let text = word(words, 0)?;
    sandbox.agent(text.parse().map_err(|_| Problem::Refused(text.to_owned()))?)
}

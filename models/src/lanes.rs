//! The loops of the networks, in the widest vectors that the processor has.
//!
//! Vectors are written out, not left to the compiler: it makes none in a program that is built for size, as the agent that is
//! shipped. On x86-64 they hold four floats (SSE2, which every one has), eight where the processor has AVX2; on aarch64 four.
//! Each element has the same operations in the same order whatever the width, and none are fused, so all give the same bits: a
//! capture replays the same on every machine.

#[cfg(target_arch = "aarch64")]
mod neon;
#[cfg(target_arch = "x86_64")]
mod x86;

/// Adds `x W`: to each sum, the products of every factor and its row's value there. Rows are as long as the sums.
pub(crate) fn add_rows(rows: &[(f32, &[i16])], sums: &mut [f32]) {
    widest(AddRows { rows, sums });
}

/// Hyperbolic tangents in place, to 4 units in the last place: Eigen's rational function.
pub(crate) fn tanh(values: &mut [f32]) {
    widest(Tanh(values));
}

/// A vector of `N` floats. Those that not every processor has are used in [`widest`] alone.
trait Lanes<const N: usize>: Copy {
    fn splat(value: f32) -> Self;
    fn load(from: &[f32; N]) -> Self;
    /// Integers as floats.
    fn widen(from: &[i16; N]) -> Self;
    fn store(self, to: &mut [f32; N]);
    fn add(self, other: Self) -> Self;
    fn mul(self, other: Self) -> Self;
    fn div(self, other: Self) -> Self;
    fn clamp(self, low: Self, high: Self) -> Self;
}

/// What is done with vectors; inlined wherever it is compiled for some.
trait Work {
    fn run<const N: usize, V: Lanes<N>>(self);
}

#[cfg(target_arch = "x86_64")]
fn widest(work: impl Work) {
    if let Err(work) = x86::with_avx2(work) {
        work.run::<4, x86::Four>();
    }
}

#[cfg(target_arch = "aarch64")]
fn widest(work: impl Work) {
    work.run::<4, neon::Four>();
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
fn widest(work: impl Work) {
    work.run::<1, f32>();
}

struct AddRows<'a> {
    rows: &'a [(f32, &'a [i16])],
    sums: &'a mut [f32],
}

impl Work for AddRows<'_> {
    #[inline(always)]
    fn run<const N: usize, V: Lanes<N>>(self) {
        let whole = self.sums.len() / N * N;
        let (vectors, single) = self.sums.split_at_mut(whole);
        add_columns::<N, V>(self.rows, 0, vectors);
        add_columns::<1, f32>(self.rows, whole, single);
    }
}

/// Adds the columns of the rows from one on, in whole vectors.
#[inline(always)]
fn add_columns<const N: usize, V: Lanes<N>>(rows: &[(f32, &[i16])], from: usize, sums: &mut [f32]) {
    let to = from + sums.len();
    let sums = sums.as_chunks_mut::<N>().0;
    let (fours, others) = rows.as_chunks::<4>();
    // Each sum is read and written once for four products.
    for four in fours {
        let [x0, x1, x2, x3] = four.map(|(x, _)| V::splat(x));
        let [r0, r1, r2, r3] = four.map(|(_, row)| row[from..to].as_chunks::<N>().0);
        for (at, sum) in sums.iter_mut().enumerate() {
            let first = x0.mul(V::widen(&r0[at])).add(x1.mul(V::widen(&r1[at])));
            let second = x2.mul(V::widen(&r2[at])).add(x3.mul(V::widen(&r3[at])));
            V::load(sum).add(first.add(second)).store(sum);
        }
    }
    for (x, row) in others {
        let x = V::splat(*x);
        for (sum, steps) in sums.iter_mut().zip(row[from..to].as_chunks::<N>().0) {
            V::load(sum).add(x.mul(V::widen(steps))).store(sum);
        }
    }
}

struct Tanh<'a>(&'a mut [f32]);

impl Work for Tanh<'_> {
    #[inline(always)]
    fn run<const N: usize, V: Lanes<N>>(self) {
        let (vectors, single) = self.0.as_chunks_mut::<N>();
        for values in vectors {
            tangent(V::load(values)).store(values);
        }
        for value in single {
            *value = tangent(*value);
        }
    }
}

#[inline(always)]
fn tangent<const N: usize, V: Lanes<N>>(x: V) -> V {
    let polynomial = |factors: &[f32], q: V| {
        let (first, rest) = factors.split_first().expect("it has factors");
        rest.iter().fold(V::splat(*first), |sum, factor| sum.mul(q).add(V::splat(*factor)))
    };
    let x = x.clamp(V::splat(-7.905_311), V::splat(7.905_311));
    let q = x.mul(x);
    let above = [
        -2.760_768_5e-16,
        2.000_188e-13,
        -8.604_672e-11,
        5.122_297e-8,
        1.485_722_4e-5,
        6.372_619e-4,
        4.893_525e-3,
    ];
    let below = [1.198_258_4e-6, 1.185_347_1e-4, 2.268_434_6e-3, 4.893_525e-3];
    x.mul(polynomial(&above, q)).div(polynomial(&below, q))
}

impl Lanes<1> for f32 {
    #[inline(always)]
    fn splat(value: f32) -> Self {
        value
    }

    #[inline(always)]
    fn load(from: &[f32; 1]) -> Self {
        from[0]
    }

    #[inline(always)]
    fn widen(from: &[i16; 1]) -> Self {
        Self::from(from[0])
    }

    #[inline(always)]
    fn store(self, to: &mut [f32; 1]) {
        to[0] = self;
    }

    #[inline(always)]
    fn add(self, other: Self) -> Self {
        self + other
    }

    #[inline(always)]
    fn mul(self, other: Self) -> Self {
        self * other
    }

    #[inline(always)]
    fn div(self, other: Self) -> Self {
        self / other
    }

    #[inline(always)]
    fn clamp(self, low: Self, high: Self) -> Self {
        f32::clamp(self, low, high)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_are_the_same_bits_whatever_the_processor_has_and_right_for_any_number_of_rows_and_columns() {
        for (count, columns) in [(0, 8), (1, 1), (3, 7), (4, 31), (5, 32), (10, 33), (13, 100)] {
            let x = (0..count).map(|at| f32::from(at * 13 % 71_u16) / 7.0 - 4.9);
            let steps: Vec<i16> = (0..count as i16 * 100).map(|at| at % 71 * 10 - 350).collect();
            let rows: Vec<(f32, &[i16])> = x.zip(steps.chunks(100)).collect();
            let sums = || vec![1.0; columns];
            let (mut here, mut plain) = (sums(), sums());
            add_rows(&rows, &mut here);
            AddRows { rows: &rows, sums: &mut plain }.run::<1, f32>();
            assert_eq!(here, plain, "{count} rows of {columns}");
            #[cfg(target_arch = "x86_64")]
            {
                let mut fours = sums();
                AddRows { rows: &rows, sums: &mut fours }.run::<4, x86::Four>();
                assert_eq!(fours, plain, "{count} rows of {columns}");
            }
            for (at, sum) in here.iter().enumerate() {
                let expected = 1.0 + rows.iter().map(|(x, row)| x * f32::from(row[at])).sum::<f32>();
                assert!((sum - expected).abs() < 0.01, "{sum} and {expected}");
            }
        }
    }

    #[test]
    fn tangents_are_those_of_the_standard_library() {
        let x: Vec<f32> = (-2000..=2000_i16).map(|at| f32::from(at) / 150.0).collect();
        let (mut here, mut plain) = (x.clone(), x.clone());
        tanh(&mut here);
        Tanh(&mut plain).run::<1, f32>();
        assert_eq!(here, plain);
        #[cfg(target_arch = "x86_64")]
        {
            let mut fours = x.clone();
            Tanh(&mut fours).run::<4, x86::Four>();
            assert_eq!(fours, plain);
        }
        for (x, y) in x.iter().zip(here) {
            assert!((y - x.tanh()).abs() < 5e-7, "{x}: {y} and {}", x.tanh());
        }
    }
}

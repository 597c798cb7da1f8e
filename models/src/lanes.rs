//! The loops of the networks, in the widest vectors that the processor has.
//!
//! What is shipped runs on every x86-64, whose vectors hold four floats. Where the processor has AVX2, the same loops,
//! compiled once more for vectors of eight, run instead. Each element has the same operations in the same order, and none
//! are fused, so both give the same bits: a capture replays the same on every machine.

/// Adds `x W`: to each sum, the products of every factor and its row's value there. Rows are at least as long as the sums.
pub(crate) fn add_rows(rows: &[(f32, &[i16])], sums: &mut [f32]) {
    widest(AddRows { rows, sums });
}

/// Hyperbolic tangents in place, to 4 units in the last place: Eigen's rational function.
pub(crate) fn tanh(values: &mut [f32]) {
    widest(Tanh(values));
}

/// Work that gains from wide vectors; to be inlined into each place that is compiled for other ones.
trait Work {
    fn run(self);
}

#[allow(unsafe_code, reason = "the compiler cannot know which processor it will be")]
fn widest(work: impl Work) {
    #[cfg(target_arch = "x86_64")]
    if std::arch::is_x86_feature_detected!("avx2") {
        #[target_feature(enable = "avx2")]
        fn with_avx2(work: impl Work) {
            work.run();
        }
        // SAFETY: the processor has just been asked for what the function needs.
        return unsafe { with_avx2(work) };
    }
    work.run();
}

struct AddRows<'a> {
    rows: &'a [(f32, &'a [i16])],
    sums: &'a mut [f32],
}

impl Work for AddRows<'_> {
    #[inline(always)]
    fn run(self) {
        let (n, sums) = (self.sums.len(), self.sums);
        let (fours, rest) = self.rows.as_chunks::<4>();
        // Each sum is read and written once for four products.
        for four in fours {
            let [x0, x1, x2, x3] = four.map(|(x, _)| x);
            let [r0, r1, r2, r3] = four.map(|(_, row)| &row[..n]);
            for (at, sum) in sums.iter_mut().enumerate() {
                let [v0, v1, v2, v3] = [r0[at], r1[at], r2[at], r3[at]].map(f32::from);
                *sum += (x0 * v0 + x1 * v1) + (x2 * v2 + x3 * v3);
            }
        }
        for (x, row) in rest {
            sums.iter_mut().zip(*row).for_each(|(sum, value)| *sum += x * f32::from(*value));
        }
    }
}

struct Tanh<'a>(&'a mut [f32]);

impl Work for Tanh<'_> {
    #[inline(always)]
    fn run(self) {
        for value in self.0 {
            let x = value.clamp(-7.905_311, 7.905_311);
            let q = x * x;
            let p = -2.760_768_5e-16 * q + 2.000_188e-13;
            let p = (p * q - 8.604_672e-11) * q + 5.122_297e-8;
            let p = ((p * q + 1.485_722_4e-5) * q + 6.372_619e-4) * q + 4.893_525e-3;
            let d = ((1.198_258_4e-6 * q + 1.185_347_1e-4) * q + 2.268_434_6e-3) * q + 4.893_525e-3;
            *value = x * p / d;
        }
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
            let (mut here, mut plain) = (vec![1.0; columns], vec![1.0; columns]);
            add_rows(&rows, &mut here);
            AddRows { rows: &rows, sums: &mut plain }.run();
            assert_eq!(here, plain, "{count} rows of {columns}");
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
        Tanh(&mut plain).run();
        assert_eq!(here, plain);
        for (x, y) in x.iter().zip(here) {
            assert!((y - x.tanh()).abs() < 5e-7, "{x}: {y} and {}", x.tanh());
        }
    }
}

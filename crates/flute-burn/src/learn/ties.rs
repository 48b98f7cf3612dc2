//! Entries of a pair table that are one value: a table of single values appears in it once for every partner, and all
//! its appearances must learn as one.

use burn::tensor::Tensor;
use flute_cube::Bits;

/// The values of a pair table of `bits` that is the product of one table with itself, or none.
pub(super) fn single_values(pairs: &[f32], bits: Bits) -> Option<Vec<f32>> {
    let codes = bits.codes();
    let pairs: &[[f32; 2]] = pairs.as_chunks().0;
    let values: Vec<f32> = pairs.iter().take(codes).map(|[even, _]| *even).collect();
    let product =
        |(at, pair): (usize, &[f32; 2])| *pair == [values[at % codes], values[at / codes]];
    (pairs.len() == bits.pairs() && pairs.iter().enumerate().all(product)).then_some(values)
}

/// The width of a pair table of `len` floats.
pub(super) fn bits_of(len: usize) -> Option<Bits> {
    Bits::ALL.into_iter().find(|bits| 2 * bits.pairs() == len)
}

/// The gradient of such a table: every appearance of a value gets the sum over all of them.
pub(super) fn tied(grad: Tensor<1>, bits: Bits) -> Tensor<1> {
    let (codes, len) = (bits.codes(), grad.dims()[0]);
    let grad = grad.reshape([codes, codes, 2]);
    let even = grad.clone().narrow(2, 0, 1).sum_dim(0).reshape([codes]);
    let odd = grad.narrow(2, 1, 1).sum_dim(1).reshape([codes]);
    let sum = even + odd;
    let of = |shape: [usize; 3]| sum.clone().reshape(shape).expand([codes, codes, 1]);
    Tensor::cat(vec![of([1, codes, 1]), of([codes, 1, 1])], 2).reshape([len])
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::{Device, TensorData};
    use flute_cube::Table;

    #[test]
    fn a_product_is_told_from_a_codebook() {
        let mut pairs = Table::nf(Bits::Three).pair_table().into_flattened();
        assert_eq!(bits_of(pairs.len()), Some(Bits::Three));
        let values = single_values(&pairs, Bits::Three);
        assert_eq!(values.as_deref(), Some(Table::nf(Bits::Three).values()));
        pairs[77] += 0.5;
        assert_eq!(single_values(&pairs, Bits::Three), None);
    }

    #[test]
    fn every_appearance_of_a_value_gets_the_sum_over_all() {
        let grad: Vec<f32> = (0..32).map(|i| (i * i % 17) as f32).collect();
        let tensor = Tensor::<1>::from_data(TensorData::new(grad.clone(), [32]), &Device::flex());
        let found = tied(tensor, Bits::Two).try_into_vec_as::<f32>().unwrap();
        let mut sums = [0.0; 4];
        for (at, pair) in grad.as_chunks::<2>().0.iter().enumerate() {
            sums[at % 4] += pair[0];
            sums[at / 4] += pair[1];
        }
        for (at, pair) in found.as_chunks::<2>().0.iter().enumerate() {
            assert_eq!(*pair, [sums[at % 4], sums[at / 4]], "pair {at}");
        }
    }
}

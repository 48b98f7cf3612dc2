//! Linear layers of one input: one product where their weights can be one, and one each where they cannot.
//!
//! Rows of a weight do not depend on each other, so q, k and v (or gate and up) in one format, with one table, are one
//! weight: a product of that is one launch instead of two or three, and fills a device better. What differs stays apart.

use crate::linear::AnyLinear;
use burn::module::Module;
use burn::tensor::Tensor;

/// Layers whose outputs lie side by side.
#[derive(Module, Debug)]
pub(super) struct Projections {
    /// One that is all of them, or one each.
    layers: Vec<AnyLinear>,
    /// Output features of each.
    #[module(skip)]
    widths: Vec<usize>,
}

/// What projections are asked for.
#[derive(Clone, Copy)]
pub(super) struct Stack<'a> {
    /// What their names begin with.
    pub(super) parent: &'a str,
    /// Names and output features, in the order in which the outputs lie.
    pub(super) parts: &'a [(&'a str, usize)],
    pub(super) in_features: usize,
    /// Whether they have biases.
    pub(super) bias: bool,
}

impl Stack<'_> {
    /// Name and shape of each.
    pub(super) fn layers(&self) -> impl Iterator<Item = (String, [usize; 2])> {
        let Self { parent, parts, in_features, .. } = *self;
        parts.iter().map(move |(part, n)| (format!("{parent}.{part}"), [*n, in_features]))
    }

    /// Output features of each.
    pub(super) fn widths(&self) -> Vec<usize> {
        self.parts.iter().map(|(_, width)| *width).collect()
    }
}

impl Projections {
    pub(super) fn apart(layers: Vec<AnyLinear>) -> Self {
        let widths = layers.iter().map(|layer| layer.shape()[0]).collect();
        Self { layers, widths }
    }

    /// `layer` has the rows of all, `widths` of them each.
    pub(super) fn together(layer: AnyLinear, widths: Vec<usize>) -> Self {
        Self { layers: vec![layer], widths }
    }

    /// `x[.., k]` to the outputs of all, side by side.
    pub(super) fn forward(&self, x: Tensor<3>) -> Tensor<3> {
        match self.layers.as_slice() {
            [layer] => layer.forward(x),
            layers => Tensor::cat(layers.iter().map(|layer| layer.forward(x.clone())).collect(), 2),
        }
    }

    /// The layers, and how many projections each of them is.
    pub(super) fn linears(&self) -> impl Iterator<Item = (&AnyLinear, usize)> {
        let each = self.widths.len() / self.layers.len();
        self.layers.iter().map(move |layer| (layer, each))
    }
}

//! Linear layers of one input: one product where their weights can be one, and one each where they cannot.
//!
//! Rows of a weight do not depend on each other, so q, k and v (or gate and up) in one format, with one table, are one
//! weight: a product of that is one launch instead of two or three, and fills a device better. Rows of gate and up lie by
//! turns then, so that the product gates what it sums. What differs stays apart.

use crate::checkpoint::Activation;
use crate::fused;
use crate::linear::AnyLinear;
use burn::module::Module;
use burn::tensor::Tensor;
use flute_cube::pack::Order;

/// Layers whose outputs lie side by side.
#[derive(Module, Debug)]
pub(super) struct Projections {
    /// One that is all of them, or one each.
    layers: Vec<AnyLinear>,
    /// Output features of each.
    #[module(skip)]
    widths: Vec<usize>,
    /// Of the rows of one that is all of them.
    #[module(skip)]
    order: Order,
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
    /// Of their rows, if they become one.
    pub(super) order: Order,
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
        Self { layers, widths, order: Order::Stacked }
    }

    /// `layer` has the rows of all parts of `stack`.
    pub(super) fn together(layer: AnyLinear, stack: Stack<'_>) -> Self {
        Self { layers: vec![layer], widths: stack.widths(), order: stack.order }
    }

    /// `x[.., k]` to the outputs of all, side by side. Not of rows by turns, which are for [`Projections::gated`].
    pub(super) fn forward(&self, x: Tensor<3>) -> Tensor<3> {
        match self.layers.as_slice() {
            [layer] => layer.forward(x),
            layers => Tensor::cat(layers.iter().map(|layer| layer.forward(x.clone())).collect(), 2),
        }
    }

    /// `f(y) · z` of the outputs of two.
    pub(super) fn gated(&self, x: Tensor<3>, activation: Activation) -> Tensor<3> {
        match (self.layers.as_slice(), self.order) {
            ([AnyLinear::Flute(layer)], Order::ByTurns) => layer.gated(x, activation),
            _ => fused::gate(self.forward(x), activation),
        }
    }

    /// The layers, and how many projections each of them is.
    pub(super) fn linears(&self) -> impl Iterator<Item = (&AnyLinear, usize)> {
        let each = self.widths.len() / self.layers.len();
        self.layers.iter().map(move |layer| (layer, each))
    }
}

//! A model as a module of Burn: what walks, trains, moves and records modules reaches its parameters; configuration and
//! type stay as they are.

use super::Model;
use super::decoder::Decoder;
use crate::linear::AnyLinear;
use burn::module::{Devices, Module, ModuleMapper, ModuleVisitor};
use burn::tensor::Device;

/// The linear layers of a block, in the order in which it holds them.
const PARTS: [&str; 7] = [
    "self_attn.q_proj",
    "self_attn.k_proj",
    "self_attn.v_proj",
    "self_attn.o_proj",
    "mlp.gate_proj",
    "mlp.up_proj",
    "mlp.down_proj",
];

impl Module for Model {
    fn collect_devices(&self, devices: Devices) -> Devices {
        self.network.collect_devices(devices)
    }

    fn fork(self, device: &Device) -> Self {
        Self { device: device.clone().without_autodiff(), ..self }
            .with(|network| network.fork(device))
    }

    fn to_device(self, device: &Device) -> Self {
        Self { device: device.clone().without_autodiff(), ..self }
            .with(|network| network.to_device(device))
    }

    fn train(self) -> Self {
        self.with(Module::train)
    }

    fn valid(&self) -> Self {
        Self { network: Box::new(self.network.valid()), ..self.clone() }
    }

    fn materialize(self) -> Self {
        self.with(Module::materialize)
    }

    fn visit<V: ModuleVisitor>(&self, visitor: &mut V) {
        self.network.visit(visitor);
    }

    fn map<M: ModuleMapper>(self, mapper: &mut M) -> Self {
        self.with(|network| network.map(mapper))
    }
}

impl Model {
    /// The linear layers by their names in the checkpoint, of a model that was loaded without fusing them; one that was
    /// fused has none.
    pub(crate) fn named_linears(&self) -> Vec<(String, &AnyLinear)> {
        let linears: Vec<(&AnyLinear, usize)> = self.network.linears().collect();
        if linears.iter().any(|(_, layers)| *layers != 1) {
            return vec![];
        }
        let name = |at: usize| match at / PARTS.len() {
            block if block < self.config.num_hidden_layers => {
                format!("model.layers.{block}.{}", PARTS[at % PARTS.len()])
            }
            _ => "lm_head".into(),
        };
        linears.into_iter().enumerate().map(|(at, (linear, _))| (name(at), linear)).collect()
    }

    fn with(self, change: impl FnOnce(Decoder) -> Decoder) -> Self {
        Self { network: Box::new(change(*self.network)), ..self }
    }
}

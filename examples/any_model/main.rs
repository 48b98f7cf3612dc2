//! FLUTE weights in models that are not ours: a perceptron, Burn's own transformer encoder, and a LLaMA.
//!
//! `cargo run --example any_model`

mod llama;

use burn::module::{Module, ParamGroup};
use burn::nn::transformer::{TransformerEncoderConfig, TransformerEncoderInput};
use burn::nn::{Linear, LinearConfig};
use burn::store::{BurnpackStore, ModuleSnapshot};
use burn::tensor::{Device, Distribution, Int, Tensor, TensorData, activation::relu};
use flute_burn::quantize::Method;
use flute_burn::{QuantizeConfig, device, module, quantize_module};
use flute_cube::{Bits, Group, Table};
use llama::LlamaConfig;

#[derive(Module, Debug)]
struct Mlp {
    up: Linear,
    down: Linear,
}

impl Mlp {
    fn new(device: &Device) -> Self {
        let (up, down) = (LinearConfig::new(512, 2048), LinearConfig::new(2048, 512));
        Self { up: up.init(device), down: down.init(device) }
    }

    fn forward<const D: usize>(&self, x: Tensor<D>) -> Tensor<D> {
        self.down.forward(relu(self.up.forward(x)))
    }
}

fn main() -> anyhow::Result<()> {
    let device = device::parse("auto")?;
    let method = Method::Absmax { table: Table::nf(Bits::Four), group: Group::Size(64) };
    let config = QuantizeConfig::new(method);

    // A record of a quantized module loads into a prepared one: nothing dense is ever made.
    let mlp = quantize_module(Mlp::new(&device), &config)?;
    let x = Tensor::<2>::random([3, 512], Distribution::Normal(0.0, 1.0), &device);
    let record = mlp.clone().into_record();
    let loaded = module::prepare_module(Mlp::new(&device), &config)?.load_record(record);
    let difference = (loaded.forward(x.clone()) - mlp.forward(x)).abs().max();
    println!("perceptron, saved and loaded: differs by {}", difference.into_scalar::<f32>());

    // A filter names weights by their paths; here the attention stays as it is.
    let encoder = TransformerEncoderConfig::new(256, 1024, 4, 2).init(&device);
    let dense = module::bytes(&encoder);
    let filter = ParamGroup::from_predicate("pwff");
    let encoder = quantize_module(encoder, &config.clone().with_filter(filter))?;
    let x = Tensor::random([2, 9, 256], Distribution::Normal(0.0, 1.0), &device);
    let y = encoder.forward(TransformerEncoderInput::new(x));
    println!("encoder {:?}: {dense} bytes before, {} now", y.dims(), module::bytes(&encoder));

    // burn-store writes and reads the same tensors, here those of a whole language model.
    let shape = LlamaConfig {
        vocab_size: 512,
        d_model: 256,
        hidden_size: 768,
        num_layers: 2,
        num_heads: 8,
        num_kv_heads: 2,
        max_seq_len: 64,
    };
    let file = tempfile::tempdir()?;
    let mut store = BurnpackStore::from_file(file.path().join("llama.bpk"));
    quantize_module(shape.init(&device), &config)?.save_into(&mut store)?;
    let mut llama = module::prepare_module(shape.init(&device), &config)?;
    llama.load_from(&mut store)?;

    let (mut cache, mut text) = (llama.empty_cache(), vec![1i64, 7, 42]);
    let mut tokens = Tensor::<2, Int>::from_data(TensorData::new(text.clone(), [1, 3]), &device);
    while text.len() < 12 {
        let logits = llama.forward(tokens, &mut cache);
        let [_, last, vocab] = logits.dims();
        tokens = logits.slice([0..1, last - 1..last, 0..vocab]).argmax(2).reshape([1, 1]);
        text.push(tokens.clone().into_scalar::<i64>());
    }
    println!("LLaMA of {} bytes says {text:?}", module::bytes(&llama));
    Ok(())
}

//! A small model directory that is right until a test breaks it.

use flute_burn::checkpoint::{ConvertOptions, Reader, Summary, convert};
use flute_burn::error::{Error, Result};
use flute_burn::quantize::Method;
use flute_cube::{Bits, Group, Table};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// One tensor to write: name, dtype, shape, bytes.
pub(crate) type Tensor = (String, &'static str, Vec<usize>, Vec<u8>);

pub(crate) struct ModelDir {
    root: tempfile::TempDir,
}

impl ModelDir {
    /// A dense LLaMA of two layers, width 64, in bf16.
    pub(crate) fn new() -> Self {
        let dir = Self { root: tempfile::tempdir().unwrap() };
        std::fs::create_dir(dir.path()).unwrap();
        dir.write("config.json", config().to_string().as_bytes());
        dir.write("model.safetensors", &safetensors(&dense_tensors()));
        dir
    }

    /// The same, quantized.
    pub(crate) fn quantized(bits: Bits, group: Group) -> Self {
        let (dense, dir) = (Self::new(), Self { root: tempfile::tempdir().unwrap() });
        dense.convert(&dir.path(), Method::Absmax { table: Table::nf(bits), group }).unwrap();
        dir
    }

    pub(crate) fn path(&self) -> PathBuf {
        self.root.path().join("model")
    }

    pub(crate) fn convert(&self, target: &Path, method: Method) -> Result<Summary> {
        convert(ConvertOptions::new(self.path(), target, method, &mut |_| ()))
    }

    pub(crate) fn open(&self) -> Result<Reader> {
        Reader::open(self.path())
    }

    /// Why it does not open.
    pub(crate) fn refusal(&self) -> Error {
        self.open().expect_err("this directory must be refused")
    }

    pub(crate) fn write(&self, name: &str, bytes: &[u8]) {
        std::fs::write(self.path().join(name), bytes).unwrap();
    }

    pub(crate) fn remove(&self, name: &str) {
        std::fs::remove_file(self.path().join(name)).unwrap();
    }

    pub(crate) fn edit_config(&self, edit: impl FnOnce(&mut Value)) {
        let path = self.path().join("config.json");
        let mut config = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        edit(&mut config);
        std::fs::write(path, config.to_string()).unwrap();
    }

    /// Replaces the weights by `json` as header and `data` zero bytes.
    pub(crate) fn header(&self, json: &str, data: usize) {
        let mut file = (json.len() as u64).to_le_bytes().to_vec();
        file.extend_from_slice(json.as_bytes());
        file.resize(file.len() + data, 0);
        self.write("model.safetensors", &file);
    }

    /// Replaces tensors by others, or removes them (`None`), or adds new ones.
    pub(crate) fn edit_tensors(&self, edit: impl FnOnce(&mut BTreeMap<String, Tensor>)) {
        let reader = self.open().unwrap();
        let mut tensors = BTreeMap::new();
        for name in reader.tensor_names() {
            let raw = reader.raw(name).unwrap();
            let tensor = (name.to_owned(), dtype_name(raw.dtype), raw.shape, raw.bytes);
            tensors.insert(name.to_owned(), tensor);
        }
        edit(&mut tensors);
        self.write("model.safetensors", &safetensors(&tensors.into_values().collect::<Vec<_>>()));
    }
}

fn config() -> Value {
    json!({
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": 48,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "eos_token_id": 1,
        "dtype": "bfloat16",
    })
}

/// Every tensor of that model, with fixed random values.
pub(crate) fn dense_tensors() -> Vec<Tensor> {
    let mut rng = StdRng::seed_from_u64(42);
    let mut tensor = |name: String, shape: Vec<usize>| {
        let count = shape.iter().product();
        let value = |_| half::bf16::from_f32(rng.random_range(-1.0..1.0)).to_le_bytes();
        let bytes = (0..count).flat_map(value).collect();
        (name, "BF16", shape, bytes)
    };
    let mut tensors = vec![
        tensor("lm_head.weight".into(), vec![48, 64]),
        tensor("model.embed_tokens.weight".into(), vec![48, 64]),
        tensor("model.norm.weight".into(), vec![64]),
    ];
    for layer in 0..2 {
        let shapes = [
            ("input_layernorm", vec![64]),
            ("post_attention_layernorm", vec![64]),
            ("self_attn.q_proj", vec![64, 64]),
            ("self_attn.k_proj", vec![32, 64]),
            ("self_attn.v_proj", vec![32, 64]),
            ("self_attn.o_proj", vec![64, 64]),
            ("mlp.gate_proj", vec![96, 64]),
            ("mlp.up_proj", vec![96, 64]),
            ("mlp.down_proj", vec![64, 96]),
        ];
        for (name, shape) in shapes {
            tensors.push(tensor(format!("model.layers.{layer}.{name}.weight"), shape));
        }
    }
    tensors
}

/// A safetensors file, written by hand so that it shares no code with what it tests.
pub(crate) fn safetensors(tensors: &[Tensor]) -> Vec<u8> {
    let (mut header, mut data) = (serde_json::Map::new(), vec![]);
    for (name, dtype, shape, bytes) in tensors {
        let offsets = [data.len(), data.len() + bytes.len()];
        let entry = json!({ "dtype": dtype, "shape": shape, "data_offsets": offsets });
        header.insert(name.clone(), entry);
        data.extend_from_slice(bytes);
    }
    let header = Value::Object(header).to_string();
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend_from_slice(header.as_bytes());
    file.extend_from_slice(&data);
    file
}

fn dtype_name(dtype: safetensors::Dtype) -> &'static str {
    match dtype {
        safetensors::Dtype::U8 => "U8",
        safetensors::Dtype::F16 => "F16",
        safetensors::Dtype::BF16 => "BF16",
        safetensors::Dtype::F32 => "F32",
        other => panic!("{other}"),
    }
}

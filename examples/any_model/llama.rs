//! A LLaMA as Burn's users write it, from Burn's own layers. Two lines know of FLUTE: the import of `linear`, and its
//! calls where a layer's `forward` stood. With those lines as they were it would run as well, only slower.

use burn::module::Module;
use burn::nn::{
    Embedding, EmbeddingConfig, Linear, LinearConfig, RmsNorm, RmsNormConfig, RotaryEncoding,
    RotaryEncodingConfig, SwiGlu, SwiGluConfig,
};
use burn::tensor::activation::softmax;
use burn::tensor::{Bool, Device, Int, Tensor};
use flute_burn::linear;

#[derive(Clone, Copy)]
pub(crate) struct LlamaConfig {
    pub(crate) vocab_size: usize,
    pub(crate) d_model: usize,
    pub(crate) hidden_size: usize,
    pub(crate) num_layers: usize,
    pub(crate) num_heads: usize,
    pub(crate) num_kv_heads: usize,
    pub(crate) max_seq_len: usize,
}

#[derive(Module, Debug)]
pub(crate) struct Llama {
    tok_embeddings: Embedding,
    layers: Vec<TransformerBlock>,
    norm: RmsNorm,
    output: Linear,
    rope: RotaryEncoding,
}

#[derive(Module, Debug)]
struct TransformerBlock {
    attention_norm: RmsNorm,
    attention: Attention,
    ffn_norm: RmsNorm,
    feed_forward: FeedForward,
}

#[derive(Module, Debug)]
struct Attention {
    wq: Linear,
    wk: Linear,
    wv: Linear,
    wo: Linear,
    heads: usize,
    kv_heads: usize,
}

#[derive(Module, Debug)]
struct FeedForward {
    swiglu: SwiGlu,
    w2: Linear,
}

/// Keys and values of the tokens so far, `[batch, kv_heads, tokens, head]`, a layer.
pub(crate) type Cache = Vec<Option<[Tensor<4>; 2]>>;

impl LlamaConfig {
    pub(crate) fn init(&self, device: &Device) -> Llama {
        let Self { d_model, hidden_size, num_heads, num_kv_heads, .. } = *self;
        let head = d_model / num_heads;
        let norm = || RmsNormConfig::new(d_model).init(device);
        let dense = |from, to| LinearConfig::new(from, to).with_bias(false).init(device);
        let block = |_| TransformerBlock {
            attention_norm: norm(),
            attention: Attention {
                wq: dense(d_model, num_heads * head),
                wk: dense(d_model, num_kv_heads * head),
                wv: dense(d_model, num_kv_heads * head),
                wo: dense(num_heads * head, d_model),
                heads: num_heads,
                kv_heads: num_kv_heads,
            },
            ffn_norm: norm(),
            feed_forward: FeedForward {
                swiglu: SwiGluConfig::new(d_model, hidden_size).init(device),
                w2: dense(hidden_size, d_model),
            },
        };
        Llama {
            tok_embeddings: EmbeddingConfig::new(self.vocab_size, d_model).init(device),
            layers: (0..self.num_layers).map(block).collect(),
            norm: norm(),
            output: dense(d_model, self.vocab_size),
            rope: RotaryEncodingConfig::new(self.max_seq_len, head).init(device),
        }
    }
}

impl Llama {
    pub(crate) fn empty_cache(&self) -> Cache {
        vec![None; self.layers.len()]
    }

    /// Logits `[batch, tokens, vocab]` of the `tokens` that follow those in `cache`.
    pub(crate) fn forward(&self, tokens: Tensor<2, Int>, cache: &mut Cache) -> Tensor<3> {
        let mut x = self.tok_embeddings.forward(tokens);
        for (layer, cache) in self.layers.iter().zip(cache) {
            x = layer.forward(x, cache, &self.rope);
        }
        linear(&self.output, self.norm.forward(x))
    }
}

impl TransformerBlock {
    fn forward(
        &self,
        x: Tensor<3>,
        cache: &mut Option<[Tensor<4>; 2]>,
        rope: &RotaryEncoding,
    ) -> Tensor<3> {
        let h = self.attention.forward(self.attention_norm.forward(x.clone()), cache, rope) + x;
        self.feed_forward.forward(self.ffn_norm.forward(h.clone())) + h
    }
}

impl Attention {
    fn forward(
        &self,
        x: Tensor<3>,
        cache: &mut Option<[Tensor<4>; 2]>,
        rope: &RotaryEncoding,
    ) -> Tensor<3> {
        let [batch, tokens, _] = x.dims();
        let split = |x: Tensor<3>, heads: usize| {
            let head = x.dims()[2] / heads;
            x.reshape([batch, tokens, heads, head]).swap_dims(1, 2)
        };
        let start = cache.as_ref().map_or(0, |[keys, _]| keys.dims()[2]);
        let queries = rope.apply(split(linear(&self.wq, x.clone()), self.heads), start);
        let keys = rope.apply(split(linear(&self.wk, x.clone()), self.kv_heads), start);
        let values = split(linear(&self.wv, x), self.kv_heads);
        let [keys, values] = match cache.take() {
            Some([k, v]) => [Tensor::cat(vec![k, keys], 2), Tensor::cat(vec![v, values], 2)],
            None => [keys, values],
        };
        *cache = Some([keys.clone(), values.clone()]);

        let [_, _, seen, head] = keys.dims();
        let shared = self.heads / self.kv_heads;
        let repeat = |x: Tensor<4>| {
            let x = x.unsqueeze_dim::<5>(2).repeat_dim(2, shared);
            x.reshape([batch, self.heads, seen, head])
        };
        let scores = queries.matmul(repeat(keys).transpose()) / (head as f64).sqrt();
        let mask = Tensor::<2, Bool>::tril_mask([tokens, seen], start as i64, &scores.device());
        let weights = softmax(scores.mask_fill(mask.unsqueeze(), f32::NEG_INFINITY), 3);
        let mixed = weights.matmul(repeat(values)).swap_dims(1, 2);
        linear(&self.wo, mixed.reshape([batch, tokens, self.heads * head]))
    }
}

impl FeedForward {
    fn forward(&self, x: Tensor<3>) -> Tensor<3> {
        // Burn's own layer, which knows nothing of FLUTE: it runs on quantized weights all the same.
        linear(&self.w2, self.swiglu.forward(x))
    }
}

//! The one error of this crate.
//!
//! Four families that a caller treats differently: *invalid input* (a file, an option, a prompt; most variants),
//! *unsupported here* ([`Error::Unsupported`], [`Error::ConfigUnsupported`] and the kernels' own), a *device* that is
//! absent or failed, and the operating system ([`Error::Io`]). A message carries the file and both numbers, what was
//! found and what is needed; [`Error::hint`] says the next step. What caused an error is its `source`, not part of
//! its message.

mod hint;

use std::path::PathBuf;

/// A result of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why an operation was refused or failed. Fields are what the message prints.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[expect(
    missing_docs,
    reason = "fields are the nouns of the variant's message, right above each of them"
)]
pub enum Error {
    /// The kernels refused or failed.
    #[error(transparent)]
    Cube(#[from] flute_cube::Error),
    /// The operating system refused.
    #[error("cannot {action} {path}")]
    Io { action: &'static str, path: PathBuf, source: std::io::Error },

    // Model directories.
    /// A model is a directory.
    #[error("{path} is not a directory")]
    NotADirectory { path: PathBuf },
    /// A file that every model directory has.
    #[error("{path} does not exist")]
    FileAbsent { path: PathBuf },
    /// A file beyond the limit of its kind, refused unread.
    #[error("{path} has {found} bytes; at most {limit} are read")]
    FileTooLarge { path: PathBuf, found: u64, limit: u64 },
    /// Weights that only running code can read.
    #[error("{path} is a pickle; it could run code, so only safetensors are read")]
    Pickle { path: PathBuf },
    /// Neither weights nor an index.
    #[error("{dir} holds neither model.safetensors nor model.safetensors.index.json")]
    WeightsAbsent { dir: PathBuf },
    /// Not JSON, or JSON of another shape.
    #[error("{path}: '{at}' cannot be read")]
    Json { path: PathBuf, at: String, source: serde_json::Error },

    // config.json.
    /// A model that is not implemented.
    #[error("{path}: architecture '{found}' is unknown; known are {known}")]
    UnknownArchitecture { path: PathBuf, found: String, known: &'static str },
    /// A field outside its range.
    #[error("{path}: {field} is {found}; it must be {needed}")]
    ConfigRange { path: PathBuf, field: &'static str, found: String, needed: String },
    /// Two fields that must divide.
    #[error("{path}: {field} is {value}, which {by_field} = {by} does not divide")]
    ConfigIndivisible {
        path: PathBuf,
        field: &'static str,
        value: usize,
        by_field: &'static str,
        by: usize,
    },
    /// A choice that exists elsewhere and not here.
    #[error("{path}: {field} '{found}' is not supported; supported are {known}")]
    ConfigUnsupported { path: PathBuf, field: &'static str, found: String, known: &'static str },
    /// Quantized tensors without the configuration that says how.
    #[error("{tensor} holds codes, but the config.json of {dir} has no quantization_config")]
    QuantizationAbsent { dir: PathBuf, tensor: String },

    // Safetensors headers.
    /// The file ends before its header does.
    #[error("{path}: the header needs {needed} bytes and the file has {found}")]
    HeaderTruncated { path: PathBuf, found: u64, needed: u64 },
    /// A header beyond the limit.
    #[error("{path}: the header claims {found} bytes; at most {limit} are read")]
    HeaderTooLarge { path: PathBuf, found: u64, limit: u64 },
    /// A header that is not the JSON it must be.
    #[error("{path}: the header is not the JSON of a safetensors file")]
    HeaderJson { path: PathBuf, source: serde_json::Error },
    /// More tensors than any model has.
    #[error("{path}: {found} tensors; at most {limit} are read")]
    TooManyTensors { path: PathBuf, found: usize, limit: usize },
    /// One name, twice.
    #[error("{path}: tensor {tensor} appears twice")]
    DuplicateTensor { path: PathBuf, tensor: String },
    /// An element type that the format does not know.
    #[error("{path}: tensor {tensor} has the unknown dtype '{found}'")]
    UnknownDtype { path: PathBuf, tensor: String, found: String },
    /// More dimensions than any weight has.
    #[error("{path}: tensor {tensor} has {found} dimensions; at most {limit} are read")]
    RankTooHigh { path: PathBuf, tensor: String, found: usize, limit: usize },
    /// A shape whose product overflows.
    #[error("{path}: tensor {tensor} of shape {shape:?} has more bytes than can be counted")]
    ShapeOverflow { path: PathBuf, tensor: String, shape: Vec<u64> },
    /// A tensor that ends before it begins.
    #[error("{path}: tensor {tensor} begins at byte {begin} and ends at {end}")]
    OffsetsReversed { path: PathBuf, tensor: String, begin: u64, end: u64 },
    /// Offsets and shape disagree.
    #[error("{path}: tensor {tensor} spans {found} bytes; its dtype and shape need {needed}")]
    TensorBytes { path: PathBuf, tensor: String, found: u64, needed: u64 },
    /// A tensor beyond the end of its file.
    #[error("{path}: tensor {tensor} ends at data byte {end}; the file holds {len}")]
    OutOfFile { path: PathBuf, tensor: String, end: u64, len: u64 },
    /// Two tensors that share bytes.
    #[error("{path}: tensor {tensor} begins at byte {begin}, inside {other}, which ends at {end}")]
    TensorOverlap { path: PathBuf, tensor: String, other: String, begin: u64, end: u64 },
    /// Bytes that belong to no tensor.
    #[error("{path}: bytes {begin}..{end} of the data belong to no tensor")]
    TensorGap { path: PathBuf, begin: u64, end: u64 },

    // Shards.
    /// A shard name that is a path.
    #[error("{path}: '{file}' is not a plain file name ending in .safetensors")]
    PathEscapes { path: PathBuf, file: String },
    /// A shard that is not there.
    #[error("{path} names {file}, which does not exist")]
    ShardAbsent { path: PathBuf, file: String },
    /// A shard without the tensor that the index promises.
    #[error("{path} says that {file} holds {tensor}; it does not")]
    IndexMismatch { path: PathBuf, file: String, tensor: String },

    // Tensors.
    /// A tensor that the model needs.
    #[error("{dir} holds no tensor {tensor}")]
    TensorAbsent { dir: PathBuf, tensor: String },
    /// A tensor of another element type than it can be.
    #[error("tensor {tensor} is {found}; it must be {needed}")]
    TensorDtype { tensor: String, found: String, needed: &'static str },
    /// A tensor of another shape than the configuration says.
    #[error("tensor {tensor} has shape {found:?}; it must be {needed}")]
    TensorShape { tensor: String, found: Vec<usize>, needed: String },
    /// A module stored twice.
    #[error("{module} is stored both dense and quantized")]
    Ambiguous { module: String },
    /// Stored codes, scales and table that make no weight.
    #[error("{module} is not a quantized weight")]
    Module { module: String, source: flute_cube::Error },
    /// A weight, scale or table value that no arithmetic survives.
    #[error("{tensor}[{row}, {col}] is {value}; every value must be finite")]
    NotFinite { tensor: String, row: usize, col: usize, value: f32 },

    // Formats of other programs.
    /// A shape that the tiles of FLUTE's own format do not divide.
    #[error("{module}: {what} is {found}; FLUTE's own format needs a multiple of {multiple}")]
    PackedShape { module: String, what: &'static str, found: usize, multiple: usize },
    /// Blocks over a flattened weight that no group within its rows describes.
    #[error(
        "{module}: blocks of {blocksize} weights cross rows of {k}; both must be multiples of 32, or the blocks of \
         the rows"
    )]
    BlocksCrossRows { module: String, k: usize, blocksize: usize },
    /// A model without quantized layers where some are needed.
    #[error("{dir} holds no quantized layer")]
    NotQuantized { dir: PathBuf },

    // Quantizing and writing.
    /// A weight that is no matrix, or a buffer of another length.
    #[error("{tensor} has {found} weights; [{n}, {k}] needs {needed}")]
    WeightLength { tensor: String, n: usize, k: usize, found: usize, needed: usize },
    /// A scale that its storage type cannot hold.
    #[error("{tensor}: the scale {value} of row {row}, group {group} exceeds {dtype}")]
    ScaleOverflow { tensor: String, row: usize, group: usize, value: f32, dtype: flute_cube::Dtype },
    /// A codebook where single values are needed.
    #[error("absmax needs a table of single values; '{found}' names {dim} weights a code")]
    TableDimension { found: flute_cube::TableKind, dim: usize },
    /// A source that is quantized already.
    #[error("{dir} is quantized already ({bits} bits)")]
    AlreadyQuantized { dir: PathBuf, bits: u8 },
    /// Nothing left to do after skipping.
    #[error("{dir} holds no linear layer that is not skipped")]
    NothingToQuantize { dir: PathBuf },
    /// A pattern that names nothing: probably a typo.
    #[error("'{pattern}' matches none of the {modules} linear layers")]
    PatternUnmatched { pattern: String, modules: usize },
    /// A target that would be overwritten.
    #[error("{path} exists already")]
    TargetExists { path: PathBuf },
    /// A target that no overwriting replaces.
    #[error("{path} is not a directory that flute wrote; it is not overwritten")]
    TargetForeign { path: PathBuf },
    /// A tensor written that was not planned, or more of it than planned.
    #[error("{tensor} was planned with {planned} bytes; {found} were written")]
    Unplanned { tensor: String, planned: u64, found: u64 },

    // Text.
    /// A model without a tokenizer.
    #[error("{path} does not exist; without it there is no text")]
    TokenizerAbsent { path: PathBuf },
    /// The tokenizer cannot be read, or failed.
    #[error("the tokenizer failed to {action}")]
    Tokenizer {
        action: &'static str,
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A model without a chat template.
    #[error("{dir} has no chat template (chat_template.jinja, or a key of tokenizer_config.json)")]
    TemplateAbsent { dir: PathBuf },
    /// The chat template is wrong, or exceeded its budget.
    #[error("the chat template failed")]
    Template { source: minijinja::Error },
    /// The chat template refused these messages in its own words.
    #[error("the chat template refuses these messages: {message}")]
    TemplateRefused { message: String },
    /// A prompt of no tokens.
    #[error("the prompt is empty; at least one token is needed")]
    EmptyPrompt,
    /// A prompt that the context cannot hold.
    #[error("the prompt has {found} tokens; the context holds {limit}")]
    PromptTooLong { found: usize, limit: usize },
    /// A sequence for which the pool of a cache has too few blocks.
    #[error("the sequence needs {needed} blocks of the cache; {free} of its {blocks} are free")]
    PoolFull { needed: usize, free: usize, blocks: usize },
    /// A sequence for which a batch has no row.
    #[error("all rows of the batch have a sequence, {sequences} of them")]
    BatchFull { sequences: usize },
    /// A token that the model does not know.
    #[error("token {token} is outside the model's vocabulary of {vocab}")]
    TokenOutOfRange { token: u32, vocab: usize },

    // Learning.
    /// A state of learning that does not go on here.
    #[error("{path} is no state of this run: {reason}")]
    LearnState { path: PathBuf, reason: String },
    /// A loss that no step can follow.
    #[error("the loss of step {step} is {value}")]
    LossNotFinite { step: usize, value: f32 },

    // Running.
    /// A device name that means nothing.
    #[error("device '{found}' is unknown; known are {known}")]
    UnknownDevice { found: String, known: &'static str },
    /// A device that this machine or this build lacks.
    #[error("device {device} is not available: {reason}")]
    DeviceAbsent { device: String, reason: String },
    /// A device that failed at work.
    #[error("device {device} failed: {reason}")]
    DeviceFailed { device: String, reason: String },
    /// A step that was computed and could not be recorded; what it would have written is lost.
    #[error("device {device} did not record a step of decoding: {reason}")]
    NotRecorded { device: String, reason: String },
    /// Something that exists elsewhere and not here.
    #[error("{what} is not supported: {reason}")]
    Unsupported { what: String, reason: String },
    /// An option outside its range.
    #[error("{name} is {found}; it must be {needed}")]
    InvalidOption { name: &'static str, found: String, needed: String },
}

impl Error {
    /// An [`Error::Io`] of `action` on `path`, for `map_err`.
    pub fn io(
        action: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { action, path, source }
    }
}

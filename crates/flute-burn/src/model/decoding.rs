//! Decoding: one token after another for every sequence of a batch, each step one launch where the device has graphs.
//!
//! A step is hundreds of small kernels, and a host that launches them one by one is slower than a device that reads the
//! weights of a whole model. Nothing in a step depends on the host: positions are read on the device, what is launched
//! depends on the cache's capacity, and the step's last kernel writes the token and the position that the next step
//! reads. So some steps are computed as they come, one more is recorded, and from then on the recording is replayed; the
//! host reads the choice, or the logits if it draws tokens itself. The first steps are steps like any other: their
//! tokens are real, and they compile kernels and leave the memory that the recording needs, in which nothing can be
//! allocated.
//!
//! Recordings are CUDA's and HIP's graphs, and on wgpu CubeCL's own. Devices without either compute every step as it
//! comes, and so does whoever asks for that, or decodes on another thread than the one that loaded the model and made the
//! cache; the tokens are the same. Sequences may come and go between steps, see [`Decoding::admit`].

mod admission;
mod ahead;

pub use admission::Admitted;

use super::greedy::{Likeliest, finite_ids, floats, ids};
use super::{Cache, Model};
use crate::choose::put;
use crate::device::{self, kernel_dtype};
use crate::error::{Error, Result};
use crate::lend::{Lent, lend};
use ahead::Ahead;
use burn::backend::{Backend, Dispatch, DispatchGraph, StreamId};
use burn::tensor::{DType, Int, Tensor};
use flute_cube::{Attend, CACHE_BLOCK, Limits, Rotate};
use std::sync::{Mutex, PoisonError};

/// Steps that are computed as they come before one is recorded: in the first, kernels are compiled and Burn's fusion
/// finds what it fuses; the second runs as every other will.
const PLAIN: usize = 2;

/// Steps that must be left for a recording to pay: making one takes as long as a few steps.
const WORTH: usize = 4;

/// A batch of sequences that grows by a token each at every step.
#[derive(Debug)]
pub struct Decoding<'m> {
    // Before what it reads and writes, so that it is gone before that is.
    way: Way<'m>,
    model: &'m Model,
    /// `[batch, 1]`: what the next step computes.
    tokens: Tensor<2, Int>,
    /// In the place of the tokens while they are written: taking a tensor away leaves another one.
    none: Tensor<2, Int>,
    cache: Cache,
    /// See [`Decoding::run_ahead`].
    runs_ahead: bool,
}

/// How the next step is computed.
#[derive(Debug)]
enum Way<'m> {
    /// As it comes; so many steps have been.
    Plain(usize),
    /// As it comes, for good.
    Never,
    /// By replaying a step.
    Replay(Box<Recording<'m>>),
    /// Not at all: recording a step failed, and the device refuses what that step would have written.
    Lost(String),
}

/// A recorded step.
#[derive(Debug)]
struct Recording<'m> {
    graph: DispatchGraph,
    /// That on which it was recorded and is replayed.
    stream: StreamId,
    /// What every replay writes, beside tokens and cache.
    chosen: Tensor<2>,
    logits: Tensor<2>,
    /// The buffer of `chosen`.
    lent: Lent,
    /// Whether a replay was seen to write where it reads.
    checked: bool,
    ahead: Option<Ahead<'m>>,
}

impl<'m> Decoding<'m> {
    /// Goes on from `cache`, with `tokens` `[batch, 1]` the next to be computed; `graph` says whether steps are recorded
    /// where that is possible.
    ///
    /// # Errors
    /// [`Error::InvalidOption`] if `tokens` are not one for each sequence of the cache.
    pub fn new(
        model: &'m Model,
        tokens: Tensor<2, Int>,
        cache: Cache,
        graph: bool,
    ) -> Result<Self> {
        let (found, needed) = (tokens.dims(), [cache.batch(), 1]);
        if found != needed {
            let (found, needed) = (format!("{found:?}"), format!("{needed:?}"));
            return Err(Error::InvalidOption { name: "the shape of tokens", found, needed });
        }
        let way = if graph && reads_nothing(model, &cache) { Way::Plain(0) } else { Way::Never };
        let none = Tensor::zeros([1, 1], (model.device(), DType::I32));
        Ok(Self { way, model, tokens, none, cache, runs_ahead: false })
    }

    /// Computes a step and returns the likeliest next token of each sequence, which the next step computes; that of a row
    /// without a sequence means nothing.
    ///
    /// # Errors
    /// [`Error::PromptTooLong`] if a sequence has all the tokens that it may have; [`Error::NotFinite`] as [`Likeliest::ids`];
    /// [`Error::DeviceFailed`]; [`Error::NotRecorded`] once recording a step has failed: this cache is lost then.
    pub fn likeliest(&mut self) -> Result<Vec<u32>> {
        let taken = self.cache.taken();
        match self.likeliest_ahead()? {
            Some(chosen) => finite_ids(&chosen, |row| taken[row]),
            None => self.advance(|chosen, _| ids(chosen, |row| taken[row])),
        }
    }

    /// Computes a step and returns the logits `[batch, vocab]` of the next token, row by row. The next step computes the
    /// likeliest, unless [`Decoding::put`] says otherwise.
    ///
    /// # Errors
    /// As [`Decoding::likeliest`], but for values that are not finite.
    pub fn logits(&mut self) -> Result<Vec<f32>> {
        self.advance(|_, logits| floats(logits))
    }

    /// Lets the next step compute `ids`, one for each sequence.
    ///
    /// # Errors
    /// [`Error::TokenOutOfRange`]; [`Error::InvalidOption`] if there are more or fewer.
    pub fn put(&mut self, ids: &[u32]) -> Result<()> {
        self.model.admit_ids(ids)?;
        let (found, batch) = (ids.len(), self.cache.batch());
        if found != batch {
            let (found, needed) = (found.to_string(), batch.to_string());
            return Err(Error::InvalidOption { name: "the number of tokens", found, needed });
        }
        self.settle();
        self.place(ids.iter().map(|id| *id as i32).collect());
        Ok(())
    }

    /// Forgets all tokens but the first `len` of each sequence.
    ///
    /// # Errors
    /// [`Error::InvalidOption`] if there are not as many.
    pub fn rewind(&mut self, len: usize) -> Result<()> {
        let shortest = self.cache.shortest();
        if len > shortest {
            let (found, needed) = (len.to_string(), format!("at most {shortest}"));
            return Err(Error::InvalidOption { name: "the tokens to keep", found, needed });
        }
        self.settle();
        self.cache.rewind(vec![len; self.cache.batch()]);
        Ok(())
    }

    /// Tokens computed so far by the longest sequence.
    pub fn computed(&self) -> usize {
        self.cache.len()
    }

    /// Whether steps are replayed.
    pub fn is_graph(&self) -> bool {
        matches!(self.way, Way::Replay(_))
    }

    /// Computes a step, of whose choice and logits `read` takes to the host what it wants.
    fn advance<T>(&mut self, read: impl Fn(&Tensor<2>, &Tensor<2>) -> Result<T>) -> Result<T> {
        self.cache.admit(self.tokens.dims())?;
        self.settle();
        let left = self.cache.capacity() - self.cache.len();
        let records = left > WORTH && self.is_home();
        match &mut self.way {
            Way::Lost(reason) => {
                let device = device::name(self.model.device());
                Err(Error::NotRecorded { device, reason: reason.clone() })
            }
            Way::Replay(recording) => {
                recording.replay(self.model)?;
                self.cache.count(1);
                if !recording.checked {
                    let end = [whole(&self.cache.position)?, whole(&self.tokens)?];
                    if !recording.left(&end, &self.cache.positions())? {
                        let reason = "a replay did not leave the tokens and positions it made";
                        self.way = Way::Lost(reason.into());
                        return self.advance(read);
                    }
                    recording.checked = true;
                }
                read(&recording.chosen, &recording.logits)
            }
            Way::Plain(steps) if *steps >= PLAIN && records => self.record(read),
            Way::Plain(steps) => {
                *steps += 1;
                self.plain(&read)
            }
            Way::Never => self.plain(&read),
        }
    }

    /// Computes a step as it comes.
    fn plain<T>(&mut self, read: &impl Fn(&Tensor<2>, &Tensor<2>) -> Result<T>) -> Result<T> {
        let (chosen, logits) = self.compute();
        self.cache.count(1);
        read(&chosen, &logits)
    }

    /// What a step launches, and nothing that the host counts: the choice and the logits.
    fn compute(&mut self) -> (Tensor<2>, Tensor<2>) {
        let tokens = std::mem::replace(&mut self.tokens, self.none.clone());
        let Likeliest { tokens, chosen, logits } = self.model.step(tokens, &mut self.cache);
        self.tokens = tokens;
        (chosen, logits)
    }

    /// Computes a step as it comes, and records another one.
    ///
    /// The step is computed twice, from the same tokens: the memory that the recording takes is what a step before it
    /// left, while the device prepares for a recording.
    fn record<T>(&mut self, read: impl Fn(&Tensor<2>, &Tensor<2>) -> Result<T>) -> Result<T> {
        // A device refuses to prepare two recordings on one stream, and CUDA ends a recording when another thread of
        // the process allocates: of two decodings one waits here.
        static ONE: Mutex<()> = Mutex::new(());
        let _one = ONE.lock().unwrap_or_else(PoisonError::into_inner);
        let device = self.model.device().clone();
        let device = device.as_dispatch();
        let (lens, tokens) = (self.cache.lens(), whole(&self.tokens)?);
        self.way = Way::Never;
        if Dispatch::graph_prepare(device).is_err() {
            return self.plain(&read);
        }
        let first = self.plain(&read);
        self.cache.rewind(lens);
        self.place(tokens);
        let result = first.and_then(|_| self.plain(&read));
        let own = self.tokens.can_mut() && self.cache.is_own();
        if result.is_err() || !own || Dispatch::graph_start_capture(device).is_err() {
            // It ends what was prepared, with an error, since nothing was recorded.
            let _ = Dispatch::graph_stop_capture(device);
            return result;
        }
        let (chosen, logits) = self.compute();
        self.way = match Dispatch::graph_stop_capture(device) {
            Ok(graph) => {
                let (stream, lent) = (StreamId::current(), Lent::default());
                let chosen = lend(chosen, &lent);
                let (checked, ahead) = (false, None);
                Way::Replay(Box::new(Recording {
                    graph,
                    stream,
                    chosen,
                    logits,
                    lent,
                    checked,
                    ahead,
                }))
            }
            Err(error) => Way::Lost(error.to_string()),
        };
        result
    }

    /// Whether model and cache were made on the caller's stream: what comes from another one is waited for and released
    /// through events, which CUDA takes into no recording.
    fn is_home(&self) -> bool {
        [self.model.home, self.cache.home] == [StreamId::current(); 2]
    }

    fn place(&mut self, tokens: Vec<i32>) {
        let held = std::mem::replace(&mut self.tokens, self.none.clone());
        self.tokens = put(held, tokens);
    }
}

impl Recording<'_> {
    /// Launches the step once more.
    fn replay(&self, model: &Model) -> Result<()> {
        let device = model.device();
        // SAFETY: a replay runs the recorded kernels again on the buffers that they were recorded with. Those are alive:
        // the weights belong to the model, which is borrowed for as long as the decoding lives and cannot change;
        // tokens, position, table, keys, values and rotations are in its `tokens` and its `cache`, what is read
        // afterwards is in `self`; and of what a step makes and drops, CubeCL keeps the pages that a recording touched
        // out of every other use while the graph lives. Nobody else touches what is written: all of it is in private
        // fields of the decoding, which are never lent or cloned (`Decoding::record` makes sure that the buffers have
        // one owner; while `Decoding::admit` reads a prompt, a cache of its own has keys and values, and gives them
        // back; `lent` is only read), and every caller has `&mut` to it. Tokens, positions and table are written, and
        // choices and logits read, on the stream of the recording: `Decoding::settle` gives the recording up when the
        // caller's stream is another one.
        #[expect(unsafe_code, reason = "the one place: Burn cannot know the above")]
        let replayed = unsafe { Dispatch::graph_replay(device.as_dispatch(), &self.graph) };
        replayed.map_err(|error| {
            let (device, reason) = (device::name(device), error.to_string());
            Error::DeviceFailed { device, reason }
        })
    }

    /// Whether a replay moved the positions to `expected`, where those are any, and left the tokens that it chose: whether
    /// it writes where it reads. `end` is the positions and the tokens.
    fn left(&self, end: &[Vec<i32>; 2], expected: &[i32]) -> Result<bool> {
        let [positions, tokens] = end;
        let mut both = positions.iter().zip(expected);
        // A row without a sequence stands somewhere before the first position.
        let moved = both.all(|(found, expected)| found == expected || (*found).max(*expected) < 0);
        let chosen = ids(&self.chosen, |_| false)?;
        Ok(moved && tokens.iter().map(|token| *token as u32).eq(chosen))
    }
}

/// Whether the host need not know where sequences stand: the kernels that read it on the device serve them.
fn reads_nothing(model: &Model, cache: &Cache) -> bool {
    let (config, batch, blocks) = (model.config(), cache.batch(), cache.pool().blocks());
    let capacity = cache.table.dims()[1] * CACHE_BLOCK;
    let (query_heads, key_heads) = (config.num_attention_heads, config.num_key_value_heads);
    let (dim, tokens, scale, cap, window) = (config.head_dim, 1, 1.0, None, None);
    let (Some(client), Ok(dtype)) = (device::client(&model.device), kernel_dtype(model.dtype))
    else {
        return false;
    };
    let limits = Limits::of(&client);
    let rotate = Rotate { batch, tokens, query_heads, key_heads, dim, capacity, blocks, dtype };
    let attend = Attend {
        batch,
        tokens,
        query_heads,
        key_heads,
        dim,
        capacity,
        blocks,
        scale,
        cap,
        window,
        dtype,
    };
    rotate.validate(&limits).and(attend.validate(&limits)).is_ok()
}

/// `tensor` on the host.
fn whole<const D: usize>(tensor: &Tensor<D, Int>) -> Result<Vec<i32>> {
    tensor.clone().try_into_vec_as::<i32>().map_err(|error| Error::DeviceFailed {
        device: device::name(&tensor.device()),
        reason: error.to_string(),
    })
}

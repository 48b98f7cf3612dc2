//! What is compiled in: the shape of heads, where things lie in shared memory, and how a launch is spread over a device.

use super::{CHUNK, PARTS, PLANES, ROWS, STREAMS};
use crate::{Attend, Cluster, Dtype, Error, Limits, Result, kernel::blocks::entries};
use cubecl::server::Handle;

/// Tiles that a plane may ask for ahead.
const STAGES: [usize; 4] = [1, 2, 3, 6];

/// See the module.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Form {
    /// Cubes of a cluster.
    pub(super) cubes: usize,
    /// Tiles of a plane that are on their way at once.
    pub(super) stages: usize,
    pub(super) dim: usize,
    /// Query heads that share a head of keys.
    pub(super) group: usize,
    pub(super) capped: bool,
    pub(super) windowed: bool,
    /// Whether the kernel rotates and stores the new token.
    pub(super) rotates: bool,
    bf16: bool,
    /// Vectors of shared memory at least: see [`Form::apart`].
    least: usize,
}

impl Form {
    /// That of `problem`, if it can be served; `buffers` with the bytes that each must begin at a multiple of.
    pub(super) fn of(
        problem: &Attend,
        buffers: &[(&Handle, u64)],
        rotates: bool,
        limits: &Limits,
    ) -> Option<Self> {
        let begins = |(buffer, bytes): &(&Handle, u64)| {
            buffer.offset_start.unwrap_or(0).is_multiple_of(*bytes)
        };
        Self::chosen(problem, rotates, limits).filter(|_| buffers.iter().all(begins))
    }

    /// That of `problem` where every buffer begins well.
    pub(crate) fn chosen(problem: &Attend, rotates: bool, limits: &Limits) -> Option<Self> {
        let Attend { batch, query_heads, key_heads, dim, cap, window, dtype, .. } = *problem;
        let form = Self {
            cubes: STREAMS,
            stages: 1,
            dim,
            group: query_heads / key_heads,
            capped: cap.is_some(),
            windowed: window.is_some(),
            rotates,
            bf16: dtype == Dtype::BF16,
            least: 0,
        };
        let served = limits.mma && limits.bulk && dtype != Dtype::F32 && dim.is_multiple_of(16);
        if !(served && form.bytes() <= limits.shared_bytes) {
            return None;
        }
        let clusters = batch * key_heads;
        // A cube begins with two trips to memory, and ends with a fold, in which it reads nothing: fewer and longer ones,
        // as long as nearly two a multiprocessor are left, with as much on its way as saturates memory. (16 sequences of
        // 1024 positions with 8 heads on an H200: 25.5 µs with 2 cubes, 30 with 4 or 8.) Single ones bring nothing over
        // pairs, and sequences of different lengths keep them waiting, so there have to be twice as many.
        let fewest = [1, 2, 4].into_iter().map(|cubes| Self { cubes, stages: 2, ..form });
        let fits = |form: &Self| form.bytes() <= room(2, limits);
        let mut many = fewest.filter(|form| {
            let least = if form.cubes == 1 { 32 } else { 15 };
            8 * form.cubes * clusters >= least * limits.processors
        });
        let cubes = many.find(fits).map_or(STREAMS, |form| form.cubes);
        let form = Self { cubes, ..form };
        // With half as much again as there are cubes, all of them run at once, and have as much on its way as fits. Where
        // they do not, more of them at once bring more than more of each: 80.9 µs with a tile of each plane on its way, 82.2
        // with two and 99 with three, of 64 sequences of 1024 positions with 8 heads on an H200.
        let all = form.cubes * clusters;
        let few = [1, 2].into_iter().find(|resident| 3 * all <= 2 * resident * limits.processors);
        let form = few.and_then(|few| form.deepest(problem, room(few, limits))).unwrap_or(form);
        Some(form.apart(all, limits))
    }

    /// Of `all` cubes no third one where two a multiprocessor are enough, however little they need: those that begin while
    /// another kernel ends would fill the first multiprocessors that are free, and leave others without any.
    fn apart(self, all: usize, limits: &Limits) -> Self {
        let two = (limits.processors + 1..=2 * limits.processors).contains(&all);
        // A multiprocessor has a kilobyte more than a cube may have, and each cube takes one.
        let third = (limits.shared_bytes + 1024) / 3 - 1024;
        Self { least: if two { third / 16 + 1 } else { 0 }, ..self }
    }

    /// The same as `cluster` says, if that is one and its cubes fit.
    pub(crate) fn spread(self, cluster: Cluster, limits: &Limits) -> Result<Self> {
        let Cluster { cubes, stages } = cluster;
        let most = STAGES[STAGES.len() - 1];
        for (what, found, max, is_one) in [
            (
                "the number of cubes of a cluster, a power of two,",
                cubes,
                STREAMS,
                cubes.is_power_of_two(),
            ),
            ("the number of tiles ahead", stages, most, stages > 0),
        ] {
            if found > max || !is_one {
                return Err(Error::OutOfRange { what, found, min: 1, max });
            }
        }
        let form = Self { cubes, stages, ..self };
        let (needed, offered) = (form.bytes(), limits.shared_bytes);
        if needed > offered {
            let (what, device) = ("bytes of shared memory", limits.name.clone());
            return Err(Error::UnsupportedShape { what, needed, offered, device });
        }
        Ok(form)
    }

    pub(crate) fn cluster(self) -> Cluster {
        Cluster { cubes: self.cubes, stages: self.stages }
    }

    /// The same with the most tiles ahead that `room` has bytes for, or as many as a plane has.
    fn deepest(self, problem: &Attend, room: usize) -> Option<Self> {
        let chunks = entries(problem.capacity);
        let chunks =
            problem.window.map_or(chunks, |window| chunks.min((window + CHUNK - 2) / CHUNK + 1));
        let tiles = chunks.div_ceil(STREAMS) * self.streams();
        let deep = STAGES.into_iter().map(|stages| Self { stages, ..self });
        let mut fits = deep.filter(|form| form.bytes() <= room);
        let enough = |form: &Self| form.stages >= tiles;
        fits.clone().find(enough).or(fits.next_back())
    }

    /// Streams of a cube, at most.
    pub(super) fn streams(self) -> usize {
        STREAMS / self.cubes
    }

    /// A row of keys in shared memory, in vectors of 16 bytes: an odd number, so that `ldmatrix` meets no bank twice.
    pub(super) fn stride(self) -> usize {
        self.dim / 8 + 1
    }

    /// Vectors of the keys of a tile, and of its values.
    pub(super) fn side(self) -> usize {
        ROWS * self.stride()
    }

    /// Vectors of the tiles of a plane.
    pub(super) fn ring(self) -> usize {
        2 * self.stages * self.side()
    }

    /// Tiles of eight heads.
    pub(super) fn columns(self) -> usize {
        self.group.div_ceil(8)
    }

    /// Lanes of every four that hold heads, two each.
    pub(super) fn pairs(self) -> usize {
        if self.columns() == 1 { self.group.div_ceil(2) } else { 4 }
    }

    /// Tiles of 16 features by eight heads: vectors of four weighted values that a lane holds.
    pub(super) fn sums(self) -> usize {
        self.columns() * self.dim / 16
    }

    /// Those that a cube folds, at most: every one that is a multiple of the cubes behind its own number.
    pub(super) fn share(self) -> usize {
        self.sums().div_ceil(self.cubes)
    }

    /// Whether planes fold a tile together: where each has one, it folds that alone and meets nobody.
    pub(super) fn meets(self) -> bool {
        self.share() < PLANES
    }

    /// Vectors of a tile of sums that hold heads.
    pub(super) fn piece(self) -> usize {
        8 * self.pairs()
    }

    /// Vectors of what a plane knows of its scores.
    pub(super) fn stats(self) -> usize {
        self.columns() * self.pairs()
    }

    /// Where a cube gets the tiles that it folds, of all planes and streams.
    pub(super) fn parts_at(self) -> usize {
        PLANES * self.ring()
    }

    /// Where it gets what they know of their scores.
    pub(super) fn stats_at(self) -> usize {
        self.parts_at() + self.share() * PARTS * self.piece()
    }

    /// Where its planes meet.
    pub(super) fn meeting_at(self) -> usize {
        self.stats_at() + PARTS * self.stats()
    }

    /// Where the barrier is that counts what it gets.
    pub(super) fn barrier_at(self) -> usize {
        self.meeting_at() + if self.meets() { 2 * 32 * PLANES } else { 0 }
    }

    /// Vectors of 16 bytes of shared memory.
    pub(super) fn vectors(self) -> usize {
        (self.barrier_at() + usize::from(self.cubes > 1)).max(self.least)
    }

    fn bytes(self) -> usize {
        16 * self.vectors()
    }

    pub(super) fn ty(self) -> &'static str {
        if self.bf16 { "bf16" } else { "f16" }
    }
}

/// Bytes of shared memory of each of `resident` cubes of a multiprocessor, which loses a kilobyte to each.
fn room(resident: usize, limits: &Limits) -> usize {
    if resident == 1 { limits.shared_bytes } else { limits.shared_bytes / resident - 1024 }
}

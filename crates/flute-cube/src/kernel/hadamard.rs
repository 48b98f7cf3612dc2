//! The Hadamard transform: one read of x, one write of y, all of a block's butterflies in between in f32.
//!
//! A unit holds up to 32 elements of a block. It adds and subtracts what it holds; what lies in another unit of its
//! plane comes by a shuffle, where the runtime has them; what lies further comes through shared memory, where units
//! trade elements until each holds a run of the bits that are left. With planes of 32, blocks up to 1024 never touch
//! shared memory, and all others go through it once; without shuffles a block of 32768 goes through it twice. A block
//! that shared memory cannot hold at once goes through it in turns.
//!
//! Number the bits of an element's place in its block from 0. A unit first holds all places that share the bits
//! between its vector (low) and its rows (high): loads are whole vectors, side by side. After a trade it holds a
//! *window*: all places that share every bit but those of a run.

use crate::{Hadamard, Limits};
use cubecl::{ir::ElemType, prelude::*, server::Handle};

/// Elements that a unit holds, unless a cube has too few units for the block.
const ELEMENTS: usize = 32;
/// The most that it ever holds: beyond, registers spill.
const MAX_ELEMENTS: usize = 64;
/// Units that a cube of several blocks has.
const UNITS: usize = 256;
/// Cubes of one launch; those that run at once take the other blocks too.
const MAX_CUBES: usize = 8192;

/// How a block is spread over units: all of it is compiled in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Form {
    block: usize,
    /// Elements of a vector of x.
    width: usize,
    /// Elements that a unit holds.
    elements: usize,
    /// Units that exchange elements by shuffles, or 1.
    lanes: usize,
    /// Blocks of a cube.
    fold: usize,
    /// Elements of a block that are in shared memory at once.
    chunk: usize,
}

impl Form {
    /// The form for `problem`, whose block is a power of two, read in vectors of `width`.
    pub(crate) fn new(problem: &Hadamard, width: usize, limits: &Limits) -> Self {
        let Hadamard { rows, block, .. } = *problem;
        let natural = if limits.lanes > 1 { block / limits.lanes } else { block };
        let few = block / previous_power_of_two(limits.cube_units.max(1)).min(block);
        // Two at least, or nothing could be traded for.
        let elements = natural.clamp(width.max(2), ELEMENTS).min(block).max(few);
        let units = block / elements;
        // A few blocks go to as many processors; with more, each fills its cubes.
        let share = rows.div_ceil(limits.processors.max(1)).max(1).next_power_of_two();
        let fold = (UNITS.min(limits.cube_units) / units).clamp(1, share);
        let whole = fold * padded(block) * size_of::<f32>() <= limits.shared_bytes;
        let fold = if whole { fold } else { 1 };
        let floats = limits.shared_bytes / size_of::<f32>() / fold;
        let room = previous_power_of_two((floats * 32 / 33).max(1));
        let lanes = limits.lanes.min(units);
        Self { block, width, elements, lanes, fold, chunk: room.min(block) }
    }

    /// Elements that a unit holds, and how many it may hold.
    pub(crate) fn held(self) -> (usize, usize) {
        (self.elements, MAX_ELEMENTS)
    }

    fn units(self) -> usize {
        self.block / self.elements
    }

    /// Bits of a place that a unit's vector spans.
    fn vector_bits(self) -> usize {
        self.width.ilog2() as usize
    }

    /// Bits of a place that the number of a unit spans at first, above those of the vector.
    fn unit_bits(self) -> usize {
        self.units().ilog2() as usize
    }

    /// Bits that a unit holds.
    fn element_bits(self) -> usize {
        self.elements.ilog2() as usize
    }

    /// The first bit that neither registers nor shuffles serve.
    fn traded_from(self) -> usize {
        self.vector_bits() + self.lanes.ilog2() as usize
    }

    /// The bit behind the last one that is traded for.
    fn traded_to(self) -> usize {
        self.vector_bits() + self.unit_bits()
    }

    /// How often units trade.
    fn trades(self) -> usize {
        (self.traded_to() - self.traded_from()).div_ceil(self.element_bits())
    }

    /// The first bit of the window after `trade`.
    fn window(self, trade: usize) -> usize {
        self.first(trade).min(self.block.ilog2() as usize - self.element_bits())
    }

    /// The first bit that is served after `trade`.
    fn first(self, trade: usize) -> usize {
        self.traded_from() + trade * self.element_bits()
    }

    /// The bit behind the last one that is served after `trade`.
    fn last(self, trade: usize) -> usize {
        self.traded_to().min(self.first(trade + 1))
    }

    /// Elements of a vector of y: after a trade a unit's elements are no longer side by side.
    fn stored(self) -> usize {
        if self.trades() == 0 { self.width } else { 1 }
    }
}

fn previous_power_of_two(value: usize) -> usize {
    1 << value.ilog2()
}

/// Elements of shared memory for `elements`: one more after every 32, so that neither window meets a bank twice.
fn padded(elements: usize) -> usize {
    elements + elements / 32
}

/// Rotates `problem.rows` blocks of `x` into `y`; both were measured, and `form` was made for the problem.
pub(crate) fn launch(client: &Client, problem: &Hadamard, form: Form, x: &Handle, y: &Handle) {
    let Hadamard { rows, block, dtype } = *problem;
    let most = MAX_CUBES.min(client.properties().hardware.max_cube_count.0 as usize);
    let cubes = rows.div_ceil(form.fold).min(most);
    // SAFETY: both buffers hold `rows` blocks; rows beyond the last are neither read nor written, and places stay below
    // the block, in shared memory below its padded chunk.
    unsafe {
        hadamard::launch_unchecked(
            client,
            CubeCount::Static(cubes as u32, 1, 1),
            CubeDim::new_2d(form.units() as u32, form.fold as u32),
            form.width,
            form.stored(),
            BufferArg::from_raw_parts(x.clone(), rows * block / form.width),
            BufferArg::from_raw_parts(y.clone(), rows * block / form.stored()),
            rows,
            form,
            dtype.elem(),
        );
    }
}

#[cube(launch_unchecked)]
fn hadamard<F: Float, N: Size, S: Size>(
    x: &[Vector<F, N>],
    y: &mut [Vector<F, S>],
    rows: usize,
    #[comptime] form: Form,
    #[define(F)] _dtype: ElemType,
) {
    let elements = comptime!(form.elements);
    let units = comptime!(form.units());
    let unit = UNIT_POS_X as usize;
    let slot = UNIT_POS_Y as usize;
    let mut shared = Shared::<[f32]>::new_slice(comptime!(if form.trades() == 0 {
        1
    } else {
        form.fold * padded(form.chunk)
    }));
    let mut first = CUBE_POS_X as usize * form.fold;
    while first < rows {
        let row = select(first + slot < rows, first + slot, rows - 1);
        let mut values = Array::<f32>::new(elements);
        #[unroll]
        for part in 0..comptime!(form.elements / form.width) {
            let vector = x[row * comptime!(form.block / form.width) + part * units + unit];
            #[unroll]
            for i in 0..comptime!(form.width) {
                values[comptime!(part * form.width + i)] = f32::cast_from(vector.extract(i));
            }
        }
        #[unroll]
        for bit in 0..comptime!(form.element_bits()) {
            add_and_subtract(&mut values, elements, comptime!(1usize << bit));
        }
        #[unroll]
        for bit in 0..comptime!(form.lanes.ilog2() as usize) {
            let sign = select(unit >> bit & 1 == 1, -1.0f32, 1.0f32);
            #[unroll]
            for i in 0..elements {
                values[i] = sign * values[i] + plane_shuffle_xor(values[i], comptime!(1u32 << bit));
            }
        }
        #[unroll]
        for turn in 0..comptime!(form.trades()) {
            trade(&mut values, &mut shared, unit, slot, turn, form);
            #[unroll]
            for bit in comptime!(form.first(turn) - form.window(turn))
                ..comptime!(form.last(turn) - form.window(turn))
            {
                add_and_subtract(&mut values, elements, comptime!(1usize << bit));
            }
        }
        if first + slot < rows {
            let norm = f32::new(comptime!(1.0 / (form.block as f32).sqrt()));
            let start = row * comptime!(form.block / form.stored());
            #[unroll]
            for part in 0..comptime!(form.elements / form.stored()) {
                let mut vector =
                    Vector::<F, S>::new(F::cast_from(values[part * form.stored()] * norm));
                #[unroll]
                for i in 1..comptime!(form.stored()) {
                    let value = values[comptime!(part * form.stored() + i)] * norm;
                    vector.insert(i, F::cast_from(value));
                }
                if comptime!(form.trades() == 0) {
                    y[start + part * units + unit] = vector;
                } else {
                    y[start + place(unit, part, comptime!(form.trades()), form)] = vector;
                }
            }
        }
        first += CUBE_COUNT_X as usize * form.fold;
    }
}

/// One butterfly over elements that lie `distance` apart in the unit.
#[cube]
fn add_and_subtract(
    values: &mut Array<f32>,
    #[comptime] elements: usize,
    #[comptime] distance: usize,
) {
    #[unroll]
    for pair in 0..comptime!(elements / 2) {
        let low = comptime!(pair / distance * 2 * distance + pair % distance);
        let high = comptime!(low + distance);
        let sum = values[low] + values[high];
        let difference = values[low] - values[high];
        values[low] = sum;
        values[high] = difference;
    }
}

/// From what a unit holds after `turn` trades to what it holds after one more.
#[cube]
fn trade(
    values: &mut Array<f32>,
    shared: &mut Shared<[f32]>,
    unit: usize,
    slot: usize,
    #[comptime] turn: usize,
    #[comptime] form: Form,
) {
    let start = slot * comptime!(padded(form.chunk));
    let mut fresh = Array::<f32>::new(comptime!(form.elements));
    #[unroll]
    for chunk in 0..comptime!(form.block / form.chunk) {
        sync_cube();
        #[unroll]
        for i in 0..comptime!(form.elements) {
            let from = place(unit, i, turn, form);
            if comptime!(form.chunk == form.block) {
                shared[start + from + from / 32] = values[i];
            } else if from / form.chunk == chunk {
                let from = from % form.chunk;
                shared[start + from + from / 32] = values[i];
            }
        }
        sync_cube();
        #[unroll]
        for i in 0..comptime!(form.elements) {
            let to = place(unit, i, comptime!(turn + 1), form);
            if comptime!(form.chunk == form.block) {
                fresh[i] = shared[start + to + to / 32];
            } else if to / form.chunk == chunk {
                let to = to % form.chunk;
                fresh[i] = shared[start + to + to / 32];
            }
        }
    }
    #[unroll]
    for i in 0..comptime!(form.elements) {
        values[i] = fresh[i];
    }
}

/// The place in its block of element `i` of a unit after `trades`.
#[cube]
fn place(
    unit: usize,
    #[comptime] i: usize,
    #[comptime] trades: usize,
    #[comptime] form: Form,
) -> usize {
    if comptime!(trades == 0) {
        unit * comptime!(form.width)
            + comptime!(i / form.width * form.units() * form.width + i % form.width)
    } else {
        let apart = comptime!(1usize << form.window(trades - 1));
        unit % apart + unit / apart * comptime!(apart * form.elements) + comptime!(i * apart)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Dtype;

    fn forms() -> impl Iterator<Item = Form> {
        let gpu = |shared_kb| Limits::nvidia("a GPU", 132, shared_kb);
        let devices = [
            gpu(227),
            gpu(48),
            Limits { lanes: 64, ..gpu(64) },
            Limits { lanes: 1, ..gpu(32) },
            Limits { lanes: 1, cube_units: 256, ..gpu(16) },
            Limits { lanes: 8, cube_units: 512, ..gpu(16) },
        ];
        let blocks = (1..=15).map(|bits| 1usize << bits);
        let each = devices.into_iter().flat_map(move |limits| {
            let of = move |(block, width, rows)| {
                let problem = Hadamard { rows, block, dtype: Dtype::F16 };
                Form::new(&problem, width, &limits)
            };
            let shapes = blocks.clone().flat_map(|block| {
                [1, 2, 4, 8]
                    .into_iter()
                    .flat_map(move |width| [1, 4000].map(|rows| (block, width, rows)))
            });
            shapes.filter(|(block, width, _)| width <= block).map(of).collect::<Vec<_>>()
        });
        each.filter(|form| form.held().0 <= form.held().1)
    }

    #[test]
    fn every_bit_of_a_place_is_served_once() {
        for form in forms() {
            let bits = form.block.ilog2() as usize;
            let mut served = vec![0; bits];
            // What a unit holds before it trades, what its plane holds, and what it trades for.
            (0..bits)
                .filter(|bit| *bit < form.vector_bits() || *bit >= form.traded_to())
                .chain(form.vector_bits()..form.traded_from())
                .for_each(|bit| served[bit] += 1);
            for trade in 0..form.trades() {
                let (first, last) = (form.first(trade), form.last(trade));
                assert!(form.window(trade) <= first, "{form:?}");
                assert!(last <= form.window(trade) + form.element_bits(), "{form:?}");
                (first..last).for_each(|bit| served[bit] += 1);
            }
            assert_eq!(served, vec![1; bits], "{form:?}");
        }
    }

    #[test]
    fn units_hold_every_place_once_before_and_after_each_trade() {
        for form in forms() {
            for trades in 0..=form.trades() {
                let mut held = vec![false; form.block];
                for unit in 0..form.units() {
                    (0..form.elements).for_each(|i| held[place(unit, i, trades, form)] = true);
                }
                assert!(held.into_iter().all(|held| held), "{form:?} after {trades}");
            }
        }
    }

    #[test]
    fn planes_of_32_trade_only_for_blocks_above_1024_and_then_once() {
        let limits = Limits::nvidia("a GPU", 132, 227);
        for bits in 1..=15 {
            let problem = Hadamard { rows: 4000, block: 1 << bits, dtype: Dtype::F16 };
            let form = Form::new(&problem, problem.block.min(8), &limits);
            assert_eq!(form.trades(), usize::from(problem.block > 1024), "{form:?}");
        }
    }
}

//! The runtimes of this machine, and buffers whose surroundings are watched.

use cubecl::{
    Device,
    device::WgpuDeviceKind::{self, Cpu, DefaultDevice, DiscreteGpu, IntegratedGpu, VirtualGpu},
    prelude::*,
    server::Handle,
};
use flute_cube::Limits;
use std::{
    env, panic,
    process::Command,
    sync::{
        OnceLock,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
};

/// One device and what it offers.
pub(crate) struct Runtime {
    pub(crate) name: &'static str,
    pub(crate) client: Client,
    pub(crate) limits: Limits,
}

/// Whether this process runs the test `name` alone; if it does not, one that does has run it, and passed. CUDA records
/// for a whole process: while one test captures a graph, every wait of another fails.
pub(crate) fn alone(name: &str) -> bool {
    const CHILD: &str = "FLUTE_ALONE";
    if env::var_os(CHILD).is_some() {
        return true;
    }
    let mut command = Command::new(env::current_exe().expect("a running program"));
    command.args(["--exact", name, "--nocapture"]).env(CHILD, name);
    let output = command.output().expect("this program runs again");
    let said = String::from_utf8_lossy(&output.stdout);
    print!("{said}");
    assert!(said.contains("1 passed"), "{name}: {}", String::from_utf8_lossy(&output.stderr));
    false
}

/// Every runtime found, CUDA first. A device compiles on one thread, and a software one does hardly anything else: where
/// there is no other it is there twice, and a test takes the one that fewer tests have.
pub(crate) fn runtimes() -> &'static [Runtime] {
    static FOUND: OnceLock<Vec<Vec<Runtime>>> = OnceLock::new();
    thread_local!(static OWN: Turn = Turn::take());
    let found = FOUND.get_or_init(|| {
        let gpus = [DiscreteGpu(0), IntegratedGpu(0), VirtualGpu(0)];
        let mut found = vec![open(&[gpus.as_slice(), &[Cpu]].concat())];
        // Asked only where wgpu is there at all, see `open`.
        let software = || gpus.iter().all(|kind| Device::wgpu(kind.clone()).is_err());
        if matches!(found[0].as_slice(), [Runtime { name: "wgpu", .. }]) && software() {
            found.push(open(&[DefaultDevice]));
        }
        found
    });
    &found[OWN.with(|own| own.0) % found.len()]
}

/// Which of two equal devices a thread has, for as long as it lasts.
struct Turn(usize);

/// How many threads have each.
static TURNS: [AtomicUsize; 2] = [AtomicUsize::new(0), AtomicUsize::new(0)];

impl Turn {
    fn take() -> Self {
        let [first, second] = &TURNS;
        let turn = usize::from(second.load(Relaxed) < first.load(Relaxed));
        TURNS[turn].fetch_add(1, Relaxed);
        Self(turn)
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        TURNS[self.0].fetch_sub(1, Relaxed);
    }
}

/// CUDA and wgpu's device of the first of these kinds, if they are there.
fn open(kinds: &[WgpuDeviceKind]) -> Vec<Runtime> {
    let required = std::env::var("FLUTE_REQUIRE").unwrap_or_default();
    let required: Vec<&str> = required.split(',').filter(|name| !name.is_empty()).collect();
    if let Some(unknown) = required.iter().find(|name| !["cuda", "wgpu"].contains(*name)) {
        panic!("FLUTE_REQUIRE names '{unknown}'; known are cuda and wgpu");
    }
    let probes: [(&str, &dyn Fn() -> Option<Device>); 2] = [
        ("cuda", &|| Device::cuda(0).ok()),
        ("wgpu", &|| kinds.iter().find_map(|kind| Device::wgpu(kind.clone()).ok())),
    ];
    let mut found = vec![];
    for (name, probe) in probes {
        // A driver library that is missing, or there without its device, panics in some of its bindings.
        let start = || probe().map(|device| device.client());
        // A process that runs a share of the matrix runs it on one device.
        if std::env::var("FLUTE_ONLY").is_ok_and(|only| only != name) {
            continue;
        }
        match panic::catch_unwind(panic::AssertUnwindSafe(start)).ok().flatten() {
            Some(client) => {
                let limits = Limits::of(&client);
                println!("{name}: {} ({}), {:?}", limits.name, limits.runtime, limits.dtypes);
                found.push(Runtime { name, client, limits });
            }
            None if required.contains(&name) => {
                panic!("FLUTE_REQUIRE names {name}, and there is none here")
            }
            None => println!("{name}: not found, its cases are skipped"),
        }
    }
    found
}

/// Bytes on each side of a guarded buffer: more than any vector load, and what every runtime can align to.
const GUARD: usize = 1024;

/// A buffer inside a larger one whose other bytes are all ones, which is NaN in every float type: what is read
/// there shows, and what is written there is found.
#[derive(Clone)]
pub(crate) struct Guarded {
    outer: Handle,
    len: usize,
}

impl Guarded {
    pub(crate) fn new(client: &Client, bytes: &[u8]) -> Self {
        let mut outer = vec![0xff; GUARD];
        outer.extend_from_slice(bytes);
        outer.resize((bytes.len() + 2 * GUARD).next_multiple_of(4), 0xff);
        Self { outer: client.create_from_slice(&outer), len: bytes.len() }
    }

    /// A buffer that holds nothing but NaN, written on the device.
    pub(crate) fn poisoned(client: &Client, len: usize) -> Self {
        let outer = client.empty((len + 2 * GUARD).next_multiple_of(4));
        poison_words(client, &outer);
        Self { outer, len }
    }

    /// What a kernel is given.
    pub(crate) fn inner(&self) -> Handle {
        let end = self.outer.size_in_used() - (GUARD + self.len) as u64;
        self.outer.clone().offset_start(GUARD as u64).offset_end(end)
    }

    /// What lies around, too.
    pub(crate) fn outer(&self) -> Handle {
        self.outer.clone()
    }

    /// The inner bytes of `outer` as read back, if the guards are whole.
    pub(crate) fn content<'a>(&self, outer: &'a [u8]) -> Result<&'a [u8], String> {
        let (inner, end) = (&outer[GUARD..][..self.len], GUARD + self.len);
        match (0..GUARD).chain(end..outer.len()).find(|i| outer[*i] != 0xff) {
            Some(i) if i < GUARD => {
                Err(format!("{} bytes before the buffer were overwritten", GUARD - i))
            }
            Some(i) => Err(format!("the byte {} after the buffer was overwritten", i - end)),
            None => Ok(inner),
        }
    }
}

/// Fills the words of `buffer` with NaN.
pub(crate) fn poison_words(client: &Client, buffer: &Handle) {
    let words = buffer.size_in_used() as usize / 4;
    // SAFETY: the buffer holds `words` words, and the kernel stays below them.
    unsafe {
        poison::launch_unchecked(
            client,
            CubeCount::Static(words.div_ceil(256).min(4096) as u32, 1, 1),
            CubeDim::new_1d(256),
            BufferArg::from_raw_parts(buffer.clone(), words),
        );
    }
}

/// Fills `buffer` with NaN.
#[cube(launch_unchecked)]
fn poison(buffer: &mut [u32]) {
    let mut at = ABSOLUTE_POS;
    while at < buffer.len() {
        buffer[at] = 0xffff_ffffu32;
        at += CUBE_COUNT * CUBE_DIM as usize;
    }
}

#[test]
fn a_byte_written_or_missing_around_a_buffer_is_reported() {
    for Runtime { client, .. } in runtimes() {
        for guarded in [Guarded::new(client, &[7; 10]), Guarded::poisoned(client, 10)] {
            let mut bytes = client.read_one(guarded.outer()).expect("readable").to_vec();
            let inner = client.read_one(guarded.inner()).expect("readable");
            assert_eq!(guarded.content(&bytes), Ok(&inner[..]));
            bytes[GUARD + 10] = 0;
            assert_eq!(
                guarded.content(&bytes),
                Err("the byte 0 after the buffer was overwritten".into())
            );
            bytes[GUARD - 2] = 0;
            assert_eq!(
                guarded.content(&bytes),
                Err("2 bytes before the buffer were overwritten".into())
            );
        }
    }
}

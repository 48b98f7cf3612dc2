//! What a device offers, as far as plans depend on it: plain data, so that a plan for any device can be made and
//! tested on any other.

use crate::{Dtype, Error, Result, dense};
use cubecl::{
    features::{MmaConfig, Plane, Tma, TypeUsage},
    prelude::Client,
};

/// The limits of one device.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Limits {
    /// How the device names itself.
    pub name: String,
    /// The runtime that drives it: `cuda`, `wgpu<wgsl>`, ….
    pub runtime: String,
    /// Multiprocessors, or 16 where the runtime does not say.
    pub processors: usize,
    /// Bytes of shared memory that one cube may use.
    pub shared_bytes: usize,
    /// Units of one cube.
    pub cube_units: usize,
    /// Units of a plane that exchange registers by shuffles; 1 where there are none, or planes vary in size.
    pub lanes: usize,
    /// Cubes along one axis of a launch.
    pub cube_count: usize,
    /// Buffers of one kernel, that of its numbers among them.
    pub bindings: usize,
    /// Types that buffers and arithmetic may use.
    pub dtypes: Vec<Dtype>,
    /// Whether `mma.sync.m16n8k16` and inline PTX are there: CUDA from compute capability 8.0 on.
    pub mma: bool,
    /// Types of which a plane multiplies cooperative matrices of 16 × 16 × 16 into f32 sums.
    pub cooperative: Vec<Dtype>,
    /// Whether bulk copies, bulk prefetches and clusters of cubes are there: CUDA from compute capability 9.0 on.
    pub bulk: bool,
    /// Whether `wgmma` is there: CUDA of compute capability 9.0, no less and no more.
    pub wgmma: bool,
    /// Whether a library of dense products works on the client's buffers: CUDA with cuBLAS on the library path and a
    /// driver from CUDA 12.5 on.
    pub dense: bool,
}

impl Limits {
    /// The limits of `client`'s device.
    pub fn of(client: &Client) -> Self {
        let properties = client.properties();
        let (hardware, features) = (&properties.hardware, &properties.features);
        let served = |dtype: &Dtype| {
            let usage = features.types.elem.get(&dtype.elem());
            usage
                .is_some_and(|u| u.contains(TypeUsage::Buffer) && u.contains(TypeUsage::Conversion))
        };
        let multiplied = |dtype: &Dtype| {
            let (operand, sum) = (dtype.elem(), Dtype::F32.elem());
            let shape =
                MmaConfig { a_type: operand, b_type: operand, cd_type: sum, m: 16, n: 16, k: 16 };
            served(dtype) && features.matmul.cmma.contains(&shape)
        };
        let runtime = client.name().to_string();
        Self {
            name: properties.identity.name.clone(),
            processors: hardware.num_streaming_multiprocessors.unwrap_or(16) as usize,
            shared_bytes: hardware.max_shared_memory_size,
            cube_units: hardware.max_units_per_cube as usize,
            lanes: match features.plane.contains(Plane::Ops) {
                true if hardware.plane_size_min == hardware.plane_size_max => {
                    hardware.plane_size_min.max(1) as usize
                }
                _ => 1,
            },
            cube_count: hardware.max_cube_count.0 as usize,
            bindings: hardware.max_bindings as usize,
            dtypes: Dtype::ALL.into_iter().filter(served).collect(),
            mma: runtime == "cuda" && features.copy_async && !features.matmul.mma.is_empty(),
            cooperative: Dtype::ALL.into_iter().filter(multiplied).collect(),
            bulk: runtime == "cuda" && features.tma.contains(Tma::Base),
            // The tensor copies of 9.0 without those that 10.0 added: later devices dropped the instruction.
            wgmma: runtime == "cuda"
                && features.tma.contains(Tma::Base)
                && !features.tma.contains(Tma::Im2colWide),
            dense: dense::is_available(client),
            runtime,
        }
    }

    /// An NVIDIA GPU that is not there, for planning: multiprocessors and kilobytes of shared memory a cube,
    /// of which 227 are taken for Hopper's. It has no dense library.
    pub fn nvidia(name: &str, processors: usize, shared_kb: usize) -> Self {
        Self {
            name: name.into(),
            runtime: "cuda".into(),
            processors,
            shared_bytes: shared_kb << 10,
            cube_units: 1024,
            lanes: 32,
            cube_count: i32::MAX as usize,
            bindings: 1024,
            dtypes: Dtype::ALL.to_vec(),
            mma: true,
            cooperative: vec![Dtype::F16, Dtype::BF16],
            bulk: shared_kb == 227,
            wgmma: shared_kb == 227,
            dense: false,
        }
    }

    /// Whether `dtype` may be used.
    ///
    /// # Errors
    /// [`Error::UnsupportedDtype`].
    pub fn require(&self, dtype: Dtype) -> Result<()> {
        if self.dtypes.contains(&dtype) {
            return Ok(());
        }
        let instead = if self.dtypes.contains(&Dtype::F16) { Dtype::F16 } else { Dtype::F32 };
        Err(Error::UnsupportedDtype { dtype, device: self.name.clone(), instead })
    }
}

//! Devices by name: what `--device` says, and what this machine has.
//!
//! | name | device |
//! |---|---|
//! | `auto` | the first of: a CUDA GPU with the headers its kernels need, a ROCm GPU, any other GPU through wgpu, the CPU |
//! | `cpu` | Burn's Flex backend, pure Rust, always there |
//! | `cuda:i`, `rocm:i` | the i-th GPU of that runtime |
//! | `wgpu:i` | the i-th GPU on whichever graphics API the machine offers; discrete ones first |
//! | `vulkan:i`, `metal:i` | the same, on that API and no other |
//! | `wgpu:cpu`, `vulkan:cpu` | a software rasterizer such as Mesa's lavapipe: for tests; `auto` never takes it |
//!
//! The index may be left out and is 0 then. Refused: other names, an index past what the machine has, and runtimes that
//! this build does not link. A probe never ends the process: a missing driver means no devices, and a device that does
//! not open is listed as such.

use crate::error::{Error, Result};
use burn::tensor::{DType, Device};
use cubecl::RuntimeId;
use cubecl::device::{WgpuBackend, WgpuDevice, WgpuDeviceKind};
use cubecl::prelude::Client;
use flute_cube::Dtype;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;

/// A device that this machine has.
#[derive(Clone, Debug)]
pub struct DeviceInfo {
    /// The name that [`parse`] takes.
    pub name: String,
    /// What the device calls itself, or why it does not open.
    pub description: String,
    /// What runs its kernels: `cuda`, `wgpu<spirv>`, `wgpu<wgsl>`, `flex`, …
    pub runtime: String,
    /// Float types it computes in.
    pub dtypes: Vec<DType>,
    /// The device; none if it is there and does not open.
    pub device: Option<Device>,
}

/// A device's name, taken apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Name {
    Auto,
    Cpu,
    Cuda(usize),
    Rocm(usize),
    Graphics(WgpuBackend, Adapter),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Adapter {
    Gpu(usize),
    Software,
}

const KNOWN: &str = "auto, cpu, cuda[:i], rocm[:i], wgpu[:i], vulkan[:i], metal[:i], wgpu:cpu";

impl Name {
    fn parse(name: &str) -> Result<Self> {
        let unknown = || Error::UnknownDevice { found: name.into(), known: KNOWN };
        let (kind, index) = name.split_once(':').unwrap_or((name, "0"));
        let number = || index.parse().map_err(|_| unknown());
        let graphics = |api| match index {
            "cpu" => Ok(Self::Graphics(api, Adapter::Software)),
            _ => Ok(Self::Graphics(api, Adapter::Gpu(number()?))),
        };
        match kind {
            "auto" | "cpu" if name != kind => Err(unknown()),
            "auto" => Ok(Self::Auto),
            "cpu" => Ok(Self::Cpu),
            "cuda" => Ok(Self::Cuda(number()?)),
            "rocm" => Ok(Self::Rocm(number()?)),
            "wgpu" => graphics(WgpuBackend::Auto),
            "vulkan" => graphics(WgpuBackend::Vulkan),
            "metal" => graphics(WgpuBackend::Metal),
            _ => Err(unknown()),
        }
    }
}

/// The device that `name` names (the table above).
///
/// # Errors
/// [`Error::UnknownDevice`]; [`Error::DeviceAbsent`] with the number of devices there are.
pub fn parse(name: &str) -> Result<Device> {
    let unavailable = |reason: String| Error::DeviceAbsent { device: name.into(), reason };
    let found = match Name::parse(name)? {
        Name::Auto => return Ok(auto()),
        Name::Cpu => return Ok(Device::flex()),
        Name::Cuda(index) => match cubecl::Device::cuda(index) {
            Ok(_) if cuda_headers().is_none() => return Err(unavailable(NO_HEADERS.into())),
            found => found,
        },
        Name::Rocm(index) => cubecl::Device::rocm(index),
        Name::Graphics(api, Adapter::Software) => match api {
            WgpuBackend::Vulkan => cubecl::Device::vulkan(WgpuDeviceKind::Cpu),
            WgpuBackend::Metal => cubecl::Device::metal_msl(WgpuDeviceKind::Cpu),
            _ => cubecl::Device::wgpu(WgpuDeviceKind::Cpu),
        },
        Name::Graphics(api, Adapter::Gpu(index)) => {
            let mut gpus = gpus(api);
            if index >= gpus.len() {
                let found = gpus.len();
                return Err(unavailable(format!(
                    "there is no GPU {index}, the machine has {found} of this kind; a software \
                     rasterizer is named wgpu:cpu, and cpu always works"
                )));
            }
            Ok(gpus.swap_remove(index))
        }
    };
    let device = found.map_err(|error| unavailable(error.to_string()))?;
    wrap(device).ok_or_else(|| unavailable("this build links no GPU runtime".into()))
}

const NO_HEADERS: &str = "the driver is there and the CUDA headers that its kernels are compiled with are not; \
     install the CUDA toolkit and set CUDA_PATH to it, or use --device wgpu or cpu";

/// Everything that this machine has, in the order in which `auto` prefers it; the CPU comes last.
pub fn available() -> Vec<DeviceInfo> {
    let all = everything();
    let named = |runtime: RuntimeId, name: &str| {
        let devices = all.iter().filter(|device| device.runtime() == runtime).enumerate();
        devices.map(|(index, device)| (format!("{name}:{index}"), device.clone())).collect()
    };
    let mut found: Vec<(String, cubecl::Device)> = named(RuntimeId::Cuda, "cuda");
    found.extend(named(RuntimeId::Hip, "rocm"));
    let gpus = all.iter().filter(|device| kind(device).is_some());
    found.extend(gpus.enumerate().map(|(i, device)| (format!("wgpu:{i}"), device.clone())));
    let software = all.iter().find(|device| is_software(device));
    found.extend(software.map(|device| ("wgpu:cpu".into(), device.clone())));

    let mut infos: Vec<DeviceInfo> = found.into_iter().map(|(name, d)| open(name, d)).collect();
    infos.push(DeviceInfo {
        name: "cpu".into(),
        description: format!("{} threads", rayon::current_num_threads()),
        runtime: "flex".into(),
        dtypes: FLOATS.to_vec(),
        device: Some(Device::flex()),
    });
    infos
}

const FLOATS: [DType; 3] = [DType::F32, DType::F16, DType::BF16];

/// Opens `device` and asks it who it is; a driver that panics is a device that does not open.
fn open(name: String, device: cubecl::Device) -> DeviceInfo {
    let opened = catch_unwind(AssertUnwindSafe(|| {
        let client = device.client();
        let wrapped = wrap(device)?;
        let dtypes = FLOATS.into_iter().filter(|dtype| wrapped.supports_dtype(*dtype)).collect();
        let description = client.properties().identity.name.clone();
        Some((wrapped, description, client.name().to_string(), dtypes))
    }));
    match opened {
        Ok(Some((device, description, runtime, dtypes))) => {
            DeviceInfo { name, description, runtime, dtypes, device: Some(device) }
        }
        Ok(None) | Err(_) => DeviceInfo {
            name,
            description: "is there and does not open; its driver said why above".into(),
            runtime: String::new(),
            dtypes: Vec::new(),
            device: None,
        },
    }
}

fn auto() -> Device {
    let cuda = cubecl::Device::cuda(0).ok();
    if cuda.is_some() && cuda_headers().is_none() {
        tracing::warn!("a CUDA GPU is passed over: {NO_HEADERS}");
    }
    let found = cuda
        .filter(|_| cuda_headers().is_some())
        .or_else(|| cubecl::Device::rocm(0).ok())
        .or_else(|| gpus(WgpuBackend::Auto).into_iter().next());
    found.and_then(wrap).unwrap_or_else(Device::flex)
}

/// The real GPUs on `api`, the most capable kind first. Software rasterizers are not among them.
fn gpus(api: WgpuBackend) -> Vec<cubecl::Device> {
    if api == WgpuBackend::Auto {
        let mut gpus = everything();
        gpus.retain(|device| kind(device).is_some());
        return gpus;
    }
    let kinds = [
        WgpuDeviceKind::DiscreteGpu(0),
        WgpuDeviceKind::IntegratedGpu(0),
        WgpuDeviceKind::VirtualGpu(0),
        WgpuDeviceKind::Other(0),
    ];
    let like = |kind| {
        let seed = cubecl::Device::Wgpu(WgpuDevice::new(kind).on(api));
        let ids = catch_unwind(|| cubecl::Device::enumerate(seed.to_id())).unwrap_or_default();
        ids.into_iter().map(cubecl::Device::from_id)
    };
    kinds.into_iter().flat_map(like).collect()
}

/// Every device of every runtime that is linked, asked once, since each question opens drivers; GPUs of wgpu in the
/// order of [`gpus`].
fn everything() -> Vec<cubecl::Device> {
    let mut devices = catch_unwind(cubecl::Device::enumerate_all).unwrap_or_default();
    devices.sort_by_key(kind);
    devices
}

/// How capable the kind of a GPU of wgpu is, best first; none for everything else.
fn kind(device: &cubecl::Device) -> Option<usize> {
    let cubecl::Device::Wgpu(device) = device else { return None };
    match device.kind {
        WgpuDeviceKind::DiscreteGpu(_) => Some(0),
        WgpuDeviceKind::IntegratedGpu(_) => Some(1),
        WgpuDeviceKind::VirtualGpu(_) => Some(2),
        WgpuDeviceKind::Other(_) => Some(3),
        _ => None,
    }
}

fn is_software(device: &cubecl::Device) -> bool {
    matches!(device, cubecl::Device::Wgpu(device) if device.kind == WgpuDeviceKind::Cpu)
}

/// The include directory that CubeCL's CUDA runtime compiles its kernels against, if it has the headers they need.
///
/// The rule is CubeCL's own: `CUDA_PATH`, else the usual places of a toolkit.
pub fn cuda_headers() -> Option<PathBuf> {
    let roots = match std::env::var_os("CUDA_PATH") {
        Some(path) => vec![PathBuf::from(path)],
        None => ["/usr/local/cuda", "/opt/cuda", "/usr"].map(PathBuf::from).to_vec(),
    };
    let include = roots.into_iter().map(|root| root.join("include"));
    include.into_iter().find(|include| include.join("cuda_fp16.h").exists())
}

/// The CubeCL client behind `device`; none on the CPU.
pub fn client(device: &Device) -> Option<Client> {
    unwrap(device).map(|device| device.client())
}

/// The name of `device` as [`parse`] takes it.
pub fn name(device: &Device) -> String {
    match unwrap(device) {
        None => "cpu".into(),
        Some(cubecl::Device::Cuda(device)) => format!("cuda:{}", device.index),
        Some(cubecl::Device::Hip(device)) => format!("rocm:{}", device.index),
        Some(cubecl::Device::Wgpu(device)) => {
            let api = match device.backend {
                WgpuBackend::Vulkan => "vulkan",
                WgpuBackend::Metal => "metal",
                _ => "wgpu",
            };
            let wanted = cubecl::Device::Wgpu(device.clone());
            match gpus(device.backend).iter().position(|gpu| *gpu == wanted) {
                Some(index) => format!("{api}:{index}"),
                None => format!("{api}:cpu"),
            }
        }
        Some(other) => format!("{other:?}"),
    }
}

/// The type that models are kept and computed in on `device` unless the caller says otherwise: f16 where a GPU computes
/// in it, f32 elsewhere (on the CPU halves only cost conversions).
pub fn default_dtype(device: &Device) -> DType {
    match unwrap(device) {
        Some(_) if device.supports_dtype(DType::F16) => DType::F16,
        _ => DType::F32,
    }
}

/// Refuses a type that `device` does not compute in.
///
/// # Errors
/// [`Error::Unsupported`] for a type that is not f32, f16 or bf16, or that the device lacks.
pub fn check_dtype(device: &Device, dtype: DType) -> Result<Dtype> {
    let kernel = kernel_dtype(dtype)?;
    if device.supports_dtype(dtype) {
        return Ok(kernel);
    }
    let (what, instead) = (format!("{kernel} on {}", name(device)), default_dtype(device));
    let reason = format!("the device does not compute in it; use {}", instead.name());
    Err(Error::Unsupported { what, reason })
}

/// `dtype` as the kernels name it.
///
/// # Errors
/// [`Error::Unsupported`] unless it is f32, f16 or bf16.
pub fn kernel_dtype(dtype: DType) -> Result<Dtype> {
    match dtype {
        DType::F32 => Ok(Dtype::F32),
        DType::F16 => Ok(Dtype::F16),
        DType::BF16 => Ok(Dtype::BF16),
        other => Err(Error::Unsupported {
            what: format!("computing in {}", other.name()),
            reason: "layers take f32, f16 or bf16".into(),
        }),
    }
}

#[cfg(feature = "cube")]
fn wrap(device: cubecl::Device) -> Option<Device> {
    Some(Device::new(device))
}

#[cfg(feature = "cube")]
fn unwrap(device: &Device) -> Option<cubecl::Device> {
    use burn::backend::DispatchDevice;
    match device.clone().without_autodiff().as_dispatch() {
        DispatchDevice::Cube(device) => Some(device.clone()),
        _ => None,
    }
}

// Without a runtime Burn has no device that CubeCL drives.
#[cfg(not(feature = "cube"))]
fn wrap(_: cubecl::Device) -> Option<Device> {
    None
}

#[cfg(not(feature = "cube"))]
fn unwrap(_: &Device) -> Option<cubecl::Device> {
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_a_kind_and_an_optional_index() {
        assert_eq!(Name::parse("cuda").unwrap(), Name::Cuda(0));
        assert_eq!(Name::parse("cuda:3").unwrap(), Name::Cuda(3));
        let software = Name::Graphics(WgpuBackend::Auto, Adapter::Software);
        assert_eq!(Name::parse("wgpu:cpu").unwrap(), software);
        let second = Name::Graphics(WgpuBackend::Vulkan, Adapter::Gpu(1));
        assert_eq!(Name::parse("vulkan:1").unwrap(), second);
    }

    #[test]
    fn other_names_are_refused_with_the_known_ones() {
        for name in ["", "gpu", "cuda:", "cuda:x", "cuda:-1", "cpu:0", "auto:1", "CUDA"] {
            let error = Name::parse(name).unwrap_err();
            assert!(matches!(error, Error::UnknownDevice { .. }), "{name}: {error}");
            assert!(error.to_string().contains("cuda"), "{error}");
        }
    }

    #[test]
    fn the_cpu_is_always_there_and_auto_always_answers() {
        assert_eq!(name(&parse("cpu").unwrap()), "cpu");
        assert!(parse("auto").is_ok());
        assert_eq!(available().last().unwrap().name, "cpu");
    }

    #[test]
    fn an_index_past_the_machine_is_refused_by_name() {
        for name in ["cuda:4242", "wgpu:4242", "vulkan:4242"] {
            let error = parse(name).unwrap_err();
            assert!(matches!(error, Error::DeviceAbsent { .. }), "{name}: {error}");
        }
    }
}

//! cuBLAS on a client's buffers, loaded when it is first asked for.
//!
//! A stream of CubeCL's cannot be had from outside, and the default stream is not ordered with it. So products run on a
//! stream of their own, between two events of the whole context (`cuCtxRecordEvent` and `cuCtxWaitEvent`, drivers from
//! CUDA 12.5 on): the product waits for whatever was queued on any stream, and whatever is queued after it waits for
//! the product, all of it on the device. What the client was told before is queued by then, since asking it for the
//! addresses of buffers takes its turn behind that. Other threads of the process wait along; nothing of theirs can be
//! in the buffers of this product between the two events, because this thread holds them.
//!
//! A context with a capture under way takes no such events, which is why the plan is refused inside one.

use super::Product;
use crate::{Error, Result};
use cubecl::{cuda::CudaRuntime, prelude::Client, server::Handle};
use cubecl_runtime::runtime::Runtime;
use cudarc::{
    cublas::{self, sys as blas},
    driver::{self, sys as cuda},
};
use std::{
    collections::HashMap,
    ffi::{CStr, c_void},
    ptr::null_mut,
    sync::{Arc, LazyLock, Mutex, OnceLock, PoisonError},
};

/// What cuBLAS would allocate itself on Hopper.
const WORKSPACE: usize = 32 << 20;

/// The first driver with events of a context.
const DRIVER: i32 = 12050;

/// Whether library and driver are there.
pub(super) fn is_available(client: &Client) -> bool {
    static FOUND: OnceLock<bool> = OnceLock::new();
    // SAFETY: opening these libraries runs nothing but their own initializers.
    client.name() == "cuda"
        && *FOUND.get_or_init(|| unsafe {
            let mut version = 0;
            cublas::sys::is_culib_present()
                && cuda::cuDriverGetVersion(&mut version).result().is_ok()
                && version >= DRIVER
                && ContextEvents::load().is_some()
        })
}

/// Queues `product` behind everything that the client was told before.
///
/// # Errors
/// [`Error::Device`] if the library does not open, or refuses.
pub(super) fn product(client: &Client, product: &Product<'_>) -> Result<()> {
    let pointer = |handle: &Handle| {
        client
            .get_resource::<<CudaRuntime as Runtime>::Server>(handle.clone())
            .map_err(|e| failed("looked up a buffer")(e.to_string()))
    };
    let (w, x, y) = (pointer(product.w)?, pointer(product.x)?, pointer(product.y)?);
    let pointers = [w.resource().ptr, x.resource().ptr, y.resource().ptr];
    let library = of(client)?;
    let library = library.lock().unwrap_or_else(PoisonError::into_inner);
    library.run(product, pointers).map_err(failed("queued a dense product"))
}

/// The library on `client`'s device, opened once.
fn of(client: &Client) -> Result<Arc<Mutex<Library>>> {
    static OPENED: LazyLock<Mutex<HashMap<u16, Arc<Mutex<Library>>>>> =
        LazyLock::new(Mutex::default);
    let index = client.service_id().device.index_id;
    let mut opened = OPENED.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(library) = opened.get(&index) {
        return Ok(library.clone());
    }
    let library = Library::open(index).map_err(failed("opened cuBLAS"))?;
    let library = Arc::new(Mutex::new(library));
    opened.insert(index, library.clone());
    Ok(library)
}

fn failed(during: &'static str) -> impl Fn(String) -> Error {
    move |reason| Error::Device { during, reason }
}

type ContextEvent = unsafe extern "C" fn(cuda::CUcontext, cuda::CUevent) -> cuda::CUresult;

/// Two functions that cudarc knows only where its bindings are of CUDA 12.5 or later.
#[derive(Clone, Copy)]
struct ContextEvents {
    record: ContextEvent,
    wait: ContextEvent,
}

impl ContextEvents {
    fn load() -> Option<Self> {
        let find = |name: &CStr| {
            let (mut address, mut status) = (null_mut(), std::mem::MaybeUninit::uninit());
            // SAFETY: both pointers are written to before the call returns; only one of them is read.
            let found = unsafe {
                cuda::cuGetProcAddress_v2(
                    name.as_ptr(),
                    &mut address,
                    DRIVER,
                    0,
                    status.as_mut_ptr(),
                )
            };
            // SAFETY: a function of this name has this signature since it exists.
            (found.result().is_ok() && !address.is_null())
                .then(|| unsafe { std::mem::transmute::<*mut c_void, ContextEvent>(address) })
        };
        Some(Self { record: find(c"cuCtxRecordEvent")?, wait: find(c"cuCtxWaitEvent")? })
    }
}

/// An opened cuBLAS with its stream, its workspace and two events.
struct Library {
    context: cuda::CUcontext,
    events: ContextEvents,
    stream: cuda::CUstream,
    handle: blas::cublasHandle_t,
    before: cuda::CUevent,
    after: cuda::CUevent,
}

// SAFETY: handles of the driver and of cuBLAS belong to no thread; a mutex lets one use them at a time.
unsafe impl Send for Library {}

impl Library {
    fn open(index: u16) -> std::result::Result<Self, String> {
        let events = ContextEvents::load().ok_or("the driver has no events of a context")?;
        let said = |e: driver::DriverError| e.to_string();
        // SAFETY: the context is the primary one, which CubeCL works in and keeps; it is made this thread's own before
        // anything is created in it, and all of it lives as long as the process.
        unsafe {
            let device = driver::result::device::get(i32::from(index)).map_err(said)?;
            let context = driver::result::primary_ctx::retain(device).map_err(said)?;
            driver::result::ctx::set_current(context).map_err(said)?;
            let kind = driver::result::stream::StreamKind::NonBlocking;
            let stream = driver::result::stream::create(kind).map_err(said)?;
            let untimed = cuda::CUevent_flags::CU_EVENT_DISABLE_TIMING;
            let event = || driver::result::event::create(untimed).map_err(said);
            let (before, after) = (event()?, event()?);
            let workspace = driver::result::malloc_sync(WORKSPACE).map_err(said)?;
            let said = |e: cublas::result::CublasError| e.to_string();
            let handle = cublas::result::create_handle().map_err(said)?;
            cublas::result::set_stream(handle, stream.cast()).map_err(said)?;
            blas::cublasSetWorkspace_v2(handle, workspace as *mut c_void, WORKSPACE)
                .result()
                .map_err(said)?;
            // Partial sums stay f32.
            let exact = blas::cublasMath_t::CUBLAS_MATH_DISALLOW_REDUCED_PRECISION_REDUCTION;
            blas::cublasSetMathMode(handle, exact).result().map_err(said)?;
            Ok(Self { context, events, stream, handle, before, after })
        }
    }

    fn run(&self, product: &Product<'_>, [w, x, y]: [u64; 3]) -> std::result::Result<(), String> {
        let said = |e: driver::DriverError| e.to_string();
        // SAFETY: context, stream and events are those that `open` made; the buffers were measured, and live until
        // work that follows the last event may have them.
        unsafe {
            driver::result::ctx::set_current(self.context).map_err(said)?;
            (self.events.record)(self.context, self.before).result().map_err(said)?;
            cuda::cuStreamWaitEvent(self.stream, self.before, 0).result().map_err(said)?;
            let multiplied = self.multiply(product, [w, x, y]);
            cuda::cuEventRecord(self.after, self.stream).result().map_err(said)?;
            (self.events.wait)(self.context, self.after).result().map_err(said)?;
            multiplied.map_err(|e| e.to_string())
        }
    }

    /// cuBLAS stores by columns: to it, the rows of y are the columns of `W · xᵀ`.
    ///
    /// # Safety
    /// The addresses are of buffers as `product` says, in the current context.
    unsafe fn multiply(
        &self,
        product: &Product<'_>,
        [w, x, y]: [u64; 3],
    ) -> std::result::Result<(), cublas::result::CublasError> {
        let Product { m, n, k, bf16, row, first, add, .. } = *product;
        let half = match bf16 {
            true => blas::cudaDataType_t::CUDA_R_16BF,
            false => blas::cudaDataType_t::CUDA_R_16F,
        };
        let (one, start) = (1f32, if add { 1f32 } else { 0f32 });
        let [m, n, k, row] = [m, n, k, row].map(|d| d as i32);
        let y = y + 2 * first as u64;
        // SAFETY: the caller's; the factors are read before the call returns.
        unsafe {
            cublas::result::gemm_ex(
                self.handle,
                blas::cublasOperation_t::CUBLAS_OP_T,
                blas::cublasOperation_t::CUBLAS_OP_N,
                n,
                m,
                k,
                (&raw const one).cast(),
                w as *const c_void,
                half,
                k,
                x as *const c_void,
                half,
                k,
                (&raw const start).cast(),
                y as *mut c_void,
                half,
                row,
                blas::cublasComputeType_t::CUBLAS_COMPUTE_32F,
                blas::cublasGemmAlgo_t::CUBLAS_GEMM_DFALT,
            )
        }
    }
}

//! Dense f16 by cuBLAS, loaded when the bench starts: `y[m,n] = x[m,k] · W[n,k]ᵀ`, sums in f32, in replays of a graph on
//! a stream of its own.

use super::Shape;
use anyhow::{Context, Result, ensure};
use cudarc::{
    cublas::{self, CudaBlas, sys::*},
    driver::{self, CudaContext, CudaSlice, CudaStream, DevicePtr, DevicePtrMut, sys},
};
use flute_cube::measure::{self, Run};
use std::{ffi::c_void, sync::Arc};

/// An opened cuBLAS.
pub(crate) struct Cublas {
    blas: CudaBlas,
    stream: Arc<CudaStream>,
    /// What cuBLAS would allocate itself on Hopper, given to it since a capture must not allocate.
    _workspace: CudaSlice<u8>,
}

const WORKSPACE_BYTES: usize = 32 << 20;

impl Cublas {
    /// On the CUDA device of this index.
    ///
    /// # Errors
    /// If driver or library are absent or refuse the device.
    pub(crate) fn open(index: usize) -> Result<Self> {
        // SAFETY: opening these libraries runs nothing but their own initializers.
        let (driver, library) =
            unsafe { (driver::sys::is_culib_present(), cublas::sys::is_culib_present()) };
        ensure!(driver, "libcuda is not on the library path");
        ensure!(library, "libcublas is not on the library path");
        let context = CudaContext::new(index)?;
        // SAFETY: all work is in the order of one stream.
        unsafe { context.disable_event_tracking() };
        let stream = context.new_stream()?;
        let blas = CudaBlas::new(stream.clone())?;
        // SAFETY: nothing reads it before cuBLAS has written it.
        let mut workspace = unsafe { stream.alloc::<u8>(WORKSPACE_BYTES)? };
        stream.synchronize()?;
        let pointer = workspace.device_ptr_mut(&stream).0;
        // SAFETY: the workspace lives as long as the handle.
        let set = unsafe {
            cublasSetWorkspace_v2(*blas.handle(), pointer as *mut c_void, WORKSPACE_BYTES)
        };
        set.result()?;
        Ok(Self { blas, stream, _workspace: workspace })
    }

    /// Uploads a weight of `shape`.
    pub(super) fn weight(&self, shape: Shape) -> Result<Weight<'_>> {
        let first = self.stream.clone_htod(&shape.weight())?;
        let copies = (1..shape.copies).map(|_| self.stream.clone_dtod(&first));
        let mut copies = copies.collect::<std::result::Result<Vec<_>, _>>()?;
        copies.push(first);
        self.stream.synchronize()?;
        Ok(Weight { cublas: self, shape, copies })
    }
}

/// Copies of one weight.
pub(super) struct Weight<'c> {
    cublas: &'c Cublas,
    shape: Shape,
    copies: Vec<CudaSlice<u8>>,
}

impl Weight<'_> {
    /// Times and checks the product with `m` rows of activations.
    pub(super) fn time(&self, m: usize) -> Result<Run> {
        let (stream, count) = (&self.cublas.stream, self.copies.len());
        stream.context().bind_to_thread()?;
        let x = stream.clone_htod(&self.shape.x(m))?;
        let mut y = stream.clone_htod(&vec![0xffu8; 2 * m * self.shape.n])?;
        let x_pointer = x.device_ptr(stream).0;
        let y_pointer = y.device_ptr_mut(stream).0;
        let launch_all = || {
            let mut weights = self.copies.iter().map(|copy| copy.device_ptr(stream).0);
            weights.try_for_each(|w| self.launch([x_pointer, w, y_pointer], m))
        };
        launch_all()?;
        stream.synchronize()?;
        stream.begin_capture(sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL)?;
        let launched = launch_all();
        let graph = stream.end_capture(sys::CUgraphInstantiate_flags(0))?;
        launched?;
        let graph = graph.context("nothing was captured")?;
        let timing = measure::sample(count, |times| {
            (0..times).try_for_each(|_| graph.launch())?;
            stream.synchronize()
        })?;
        let y = stream.clone_dtoh(&y)?;
        stream.synchronize()?;
        Ok(Run { timing, deviation: self.shape.samples(m).deviation(&y) })
    }

    /// cuBLAS stores by columns: to it, the rows of y are the columns of `W · xᵀ`.
    fn launch(&self, [x, w, y]: [sys::CUdeviceptr; 3], m: usize) -> Result<()> {
        let [m, n, k] = [m, self.shape.n, self.shape.k].map(|d| d as i32);
        let (one, zero, half) = (1f32, 0f32, cudaDataType_t::CUDA_R_16F);
        // SAFETY: `time` allocated x as [m, k] and y as [m, n], `Cublas::weight` w as [n, k], all of f16; the factors
        // are read before the call returns.
        unsafe {
            cublas::result::gemm_ex(
                *self.cublas.blas.handle(),
                cublasOperation_t::CUBLAS_OP_T,
                cublasOperation_t::CUBLAS_OP_N,
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
                (&raw const zero).cast(),
                y as *mut c_void,
                half,
                n,
                cublasComputeType_t::CUBLAS_COMPUTE_32F,
                cublasGemmAlgo_t::CUBLAS_GEMM_DFALT,
            )?;
        }
        Ok(())
    }
}

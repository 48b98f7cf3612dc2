//! The buffer of a tensor, for who reads it while the device goes on.
//!
//! Burn reads a tensor behind everything that was launched until it is asked to. Who wants what a buffer holds now, and
//! launches more before it waits for that, asks for the copy first: [`Lender::read`] does, and the copy's place among the
//! launches is where it was asked for. Devices without kernels lend nothing.

use crate::device;
use crate::error::{Error, Result};
use burn::backend::{Backend, Dispatch, Flex, backend_extension, tensor::FloatTensor};
use burn::tensor::{Bytes, Device, Tensor, read_sync};
use cubecl::prelude::Client;
use cubecl::server::{Handle, ServerError};
use std::fmt;
use std::pin::Pin;
use std::sync::{Arc, OnceLock};

/// The buffer that a tensor was computed into, once it was.
#[derive(Clone, Default)]
pub struct Lent(Arc<OnceLock<Handle>>);

/// Who reads buffers of a device.
#[derive(Clone)]
pub struct Lender {
    /// None where no kernel runs.
    client: Option<Client>,
    device: Device,
}

/// The operation as Burn's backends offer it. To support one more backend, write `impl LendOps for It {}`: it lends
/// nothing then.
#[backend_extension(Cube: cfg(feature = "cube"), Flex, Fusion: cfg(feature = "fusion"))]
pub trait LendOps: Backend {
    /// See [`lend`].
    #[fusion(dtype = tensor, shape = tensor)]
    fn flute_lend(tensor: FloatTensor<Self>, lent: Lent) -> FloatTensor<Self> {
        drop(lent);
        tensor
    }
}

impl LendOps for Flex {}

#[cfg(feature = "cube")]
impl LendOps for burn_cubecl::CubeBackend {
    fn flute_lend(tensor: FloatTensor<Self>, lent: Lent) -> FloatTensor<Self> {
        let tensor = burn_cubecl::kernel::into_contiguous(tensor);
        // Only the first tensor that it is given counts.
        let _ = lent.0.set(tensor.handle.clone());
        tensor
    }
}

/// `tensor`, whose buffer `lent` has as soon as the tensor is computed.
pub fn lend<const D: usize>(tensor: Tensor<D>, lent: &Lent) -> Tensor<D> {
    let tensor = tensor.without_autodiff().into_dispatch();
    Tensor::from_dispatch(Dispatch::flute_lend(tensor, lent.clone()))
}

impl Lender {
    /// That of `device`.
    pub fn of(device: &Device) -> Self {
        Self { client: device::client(device), device: device.clone() }
    }

    /// Asks for a copy of what `lent` holds behind all that the calling thread has launched on the device, where its
    /// tensor was computed; none if there is no buffer.
    pub fn read(&self, lent: &Lent) -> Option<Reading<'_>> {
        let (client, handle) = (self.client.as_ref()?, lent.0.get()?.clone());
        let copied = Box::pin(client.read_async(vec![handle]));
        Some(Reading { copied: Some(copied), device: &self.device })
    }
}

impl fmt::Debug for Lender {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Lender").field(&device::name(&self.device)).finish()
    }
}

impl Lent {
    /// Whether there is a buffer.
    pub fn is_there(&self) -> bool {
        self.0.get().is_some()
    }
}

impl fmt::Debug for Lent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Lent").field(&self.is_there()).finish()
    }
}

/// A buffer on its way to the host. Dropped it is waited for too: the device may be writing what would be freed.
pub struct Reading<'a> {
    copied: Option<Pin<Box<dyn Future<Output = Copied> + Send + 'a>>>,
    device: &'a Device,
}

/// What the runtime says of one.
type Copied = std::result::Result<Vec<Bytes>, ServerError>;

impl Reading<'_> {
    /// The bytes, once they are there.
    ///
    /// # Errors
    /// [`Error::DeviceFailed`].
    pub fn wait(mut self) -> Result<Vec<u8>> {
        match self.copied.take().map(read_sync) {
            Some(Ok(bytes)) => Ok(bytes.iter().flat_map(|bytes| bytes.iter().copied()).collect()),
            Some(Err(error)) => {
                let (device, reason) = (device::name(self.device), error.to_string());
                Err(Error::DeviceFailed { device, reason })
            }
            None => Ok(vec![]),
        }
    }
}

impl Drop for Reading<'_> {
    fn drop(&mut self) {
        drop(self.copied.take().map(read_sync));
    }
}

impl fmt::Debug for Reading<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Reading").field(&device::name(self.device)).finish()
    }
}

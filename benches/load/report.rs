//! The figures, for people and for machines.

use crate::process::Used;
use anyhow::Result;
use serde::Serialize;

/// What was measured. Times in seconds, sizes in bytes.
#[derive(Serialize)]
pub(crate) struct Report {
    pub(crate) shape: String,
    pub(crate) layers: usize,
    pub(crate) format: String,
    pub(crate) device: String,
    /// Threads that read and pack.
    pub(crate) threads: usize,
    /// Of all tensors.
    pub(crate) bytes: u64,
    pub(crate) largest_layer_bytes: u64,
    /// Linear layers of one block.
    pub(crate) block_bytes: u64,
    /// Reading everything by one thread, which is what brings it into the page cache.
    pub(crate) read_seconds: f64,
    /// From the files to kernel order in host memory.
    pub(crate) host_seconds: f64,
    /// In the order in which they ran: the first opens the device.
    pub(crate) loads: Vec<Load>,
}

/// One load.
#[derive(Serialize)]
pub(crate) struct Load {
    pub(crate) seconds: f64,
    /// None where the system does not tell.
    pub(crate) used: Option<Used>,
}

impl Report {
    pub(crate) fn print(&self, json: bool) -> Result<()> {
        if json {
            println!("{}", serde_json::to_string_pretty(self)?);
            return Ok(());
        }
        let Self { shape, layers, format, device, threads, .. } = self;
        println!("{shape}, {layers} layers, {format}, on {device}; {threads} threads");
        let (gigabytes, megabytes) = (self.bytes as f64 / 1e9, |bytes: u64| bytes as f64 / 1e6);
        let line = |what: &str, seconds: f64| {
            println!("{what:<8} {seconds:8.3} s  {:6.2} GB/s", gigabytes / seconds);
        };
        println!("bytes    {gigabytes:8.3} GB");
        println!(
            "largest  {:8.1} MB a layer, {:.1} MB a block",
            megabytes(self.largest_layer_bytes),
            megabytes(self.block_bytes)
        );
        line("read", self.read_seconds);
        line("host", self.host_seconds);
        for load in &self.loads {
            line("load", load.seconds);
            if let Some(Used { peak_bytes, kept_bytes, cpu_seconds }) = load.used {
                println!(
                    "memory   {:8.1} MB at most, {:.1} MB kept; {:.2} cores busy",
                    megabytes(peak_bytes),
                    megabytes(kept_bytes),
                    cpu_seconds / load.seconds
                );
            }
        }
        Ok(())
    }
}

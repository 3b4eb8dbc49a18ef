//! What initiators do to a disk while a test does something else to it.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;
use std::time::Duration;

use perf::verify::{Plan, Progress, Verifier};

use crate::server::{Server, tool_ok};

/// Let QEMU carry out these commands on a logical unit; patterns that do not fit fail.
pub fn io(url: &str, read_only: bool, script: &[&str]) {
    let mut arguments = vec!["-f", "raw"];
    if read_only {
        arguments.push("-r");
    }
    for line in script {
        arguments.extend(["-c", line]);
    }
    arguments.push(url);
    let said = tool_ok("qemu-io", &arguments);
    assert!(!said.contains("verification failed"), "{url}: {script:?}:\n{said}");
}

/// An initiator that writes and reads the first 32 MiB of LUN 0 of a target until it is stopped, and knows what must be
/// there.
pub struct VerifyingLoad {
    progress: Arc<Progress>,
    worker: JoinHandle<Result<Verifier, String>>,
}

impl VerifyingLoad {
    /// Begin; it gives up after this long without an answer.
    pub fn on(server: &Server, iqn: &str) -> Self {
        let plan = Plan {
            portal: server.portals[0],
            wishes: server.wishes(iqn),
            lun: 0,
            first_byte: 0,
            len_bytes: 32 << 20,
            unit_bytes: 4096,
            io_units_max: 16,
            depth: 8,
            write_percent: 70,
            flush_one_in: 200,
            writer: 5,
            over_ring: false,
            seed: 7,
        };
        let mut verifier = Verifier::open(plan).expect("a session");
        let progress = Arc::new(Progress::default());
        let of_worker = Arc::clone(&progress);
        let patience = Duration::from_secs(30);
        let work = move || verifier.run(&of_worker, patience).map(|()| verifier).map_err(|e| e.to_string());
        Self { progress, worker: std::thread::spawn(work) }
    }

    /// Stop, and look whether all of it is there and nobody was disturbed.
    pub fn stop(self) {
        self.progress.stop.store(true, Ordering::Relaxed);
        let mut verifier = self.worker.join().expect("the verifier's thread").unwrap_or_else(|why| panic!("{why}"));
        verifier.check_all().expect("the whole region can be read");
        let summary = verifier.summary();
        assert_eq!(summary.finding_count, 0, "{summary}");
        assert_eq!(summary.reconnects, 0, "nobody was disturbed: {summary}");
        assert!(summary.writes > 100, "{summary}");
    }
}

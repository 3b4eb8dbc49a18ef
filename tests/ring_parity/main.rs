//! The simulator must not lie: one body of tests for every implementation of the ring.
//!
//! `exercise` is the body, `harness` what it needs of an implementation, `kernel` the io_uring side on real sockets and
//! files, with all features and with those of the oldest supported kernel only, `simulated` the simulator's side.
#![allow(clippy::unwrap_used)]

mod exercise;
mod harness;
mod kernel;
mod simulated;

/// Every exercise as a test of its own, on harnesses made by an expression.
macro_rules! parity_tests {
    ($module:ident, $harness:expr) => {
        parity_tests!($module, $harness;
            file_bytes_come_back_and_reads_end_at_the_end_of_the_file,
            files_are_extended_zeroed_punched_and_truncated,
            blocks_are_shared_or_left_as_they_are,
            a_bad_descriptor_is_an_error_and_gives_the_operation_back,
            several_connections_are_accepted_and_talk,
            a_gathered_send_arrives_in_order,
            a_send_larger_than_the_socket_takes_is_carried_on,
            zero_copy_sends_give_their_buffers_back_last,
            bulk_is_filled_before_the_stream,
            the_end_of_the_stream_is_a_receive_of_nothing,
            a_send_to_a_peer_that_is_gone_fails,
            what_waits_can_be_cancelled,
            timeouts_pass_in_order_and_waits_end_on_time,
            a_wake_from_another_thread_ends_the_wait,
            shutting_down_completes_what_is_pending,
            a_full_ring_gives_the_operation_back,
            a_ring_dropped_with_operations_in_flight_frees_their_buffers,
        );
    };
    ($module:ident, $harness:expr; $($test:ident,)+) => {
        mod $module {
            $(
                #[test]
                fn $test() {
                    crate::exercise::$test($harness);
                }
            )+
        }
    };
}

parity_tests!(io_uring, crate::kernel::KernelHarness::new(lunaring::ring::FeatureLimit::Full));
parity_tests!(io_uring_baseline, crate::kernel::KernelHarness::new(lunaring::ring::FeatureLimit::Baseline));
parity_tests!(simulated_calm, crate::simulated::SimulatedHarness::calm());
parity_tests!(simulated_late, crate::simulated::SimulatedHarness::late());

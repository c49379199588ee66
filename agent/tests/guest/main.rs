//! The agent as a whole, driven over its own protocol as the host drives it.
//!
//! Every test runs in two kinds of guest. `in_namespaces` starts the agent as process 1 of new namespaces of this
//! machine, with loop devices as disks and unix sockets for vsock: quick, for root on a Linux with EROFS, ext4, overlayfs
//! and cgroup v2; and without limits of control groups. `in_a_machine` boots the guest's own kernel under bulkhead-vmm with the agent in its initramfs; those
//! are `#[ignore]`d and run in the node that has KVM, with `BULKHEAD_BIN_DIR` and `BULKHEAD_GUEST_DIR` set.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::assigning_clones,
    clippy::cast_possible_truncation,
    reason = "a test ends where what it expects is not so"
)]

mod containers;
mod disk;
mod execs;
mod guest;
mod host;
mod isolation;
mod limits;
mod machine;
mod namespaces;
mod network;
mod pod;
mod streams;
mod tap;
mod users;

macro_rules! tests {
    (
        fresh { $($fresh_module:ident: $($fresh:ident),* ;)* }
        shared { $($module:ident: $($test:ident),* ;)* }
        machine_only { $($machine_module:ident: $($machine_test:ident),* ;)* }
    ) => {
        mod in_namespaces {
            $($(
                #[test]
                fn $fresh() {
                    crate::guest::test(crate::namespaces::start, |guest| Box::pin(crate::$fresh_module::$fresh(guest)));
                }
            )*)*
            $($(
                #[test]
                fn $test() {
                    crate::guest::test(crate::namespaces::start, |guest| Box::pin(crate::$module::$test(guest)));
                }
            )*)*
        }

        mod in_a_machine {
            $($(
                #[test]
                #[ignore = "boots a virtual machine: runs in the node with KVM"]
                fn $fresh() {
                    crate::guest::test(crate::machine::start, |guest| Box::pin(crate::$fresh_module::$fresh(guest)));
                }
            )*)*

            #[test]
            #[ignore = "boots a virtual machine: runs in the node with KVM"]
            fn everything_that_can_share_a_guest() {
                crate::guest::test_one_after_another(crate::machine::start, &[
                    $($((stringify!($test), |guest| Box::pin(crate::$module::$test(guest))),)*)*
                    $($((stringify!($machine_test), |guest| Box::pin(crate::$machine_module::$machine_test(guest))),)*)*
                ]);
            }
        }
    };
}

tests! {
    fresh {
        pod:
            the_agent_says_who_it_is,
            the_pod_is_configured_once,
            what_cannot_be_configured_is_told_and_undone,
            shutdown_answers_and_ends_the_guest,
            reseeding_takes_entropy_in_bounds,
            kernel_settings_are_made_in_the_pods_namespaces;
    }
    shared {
        containers:
            a_container_runs_and_its_output_and_exit_code_arrive,
            signals_and_exit_codes_are_told_apart,
            layers_lie_upon_each_other_and_upon_all_the_writable_one,
            a_removed_container_leaves_nothing,
            failed_creations_leave_nothing,
            states_are_kept,
            a_program_that_cannot_be_executed_fails_the_start,
            many_containers_share_layers,
            orphans_leave_no_zombies,
            containers_are_listed_and_measured;
        isolation:
            a_container_sees_only_itself,
            standard_mounts_are_as_oci_has_them,
            hostile_images_place_no_mount_outside,
            mounts_are_made_as_asked,
            masked_and_read_only_paths,
            devices_outside_the_list_cannot_be_opened,
            a_privileged_container_may_do_what_others_may_not,
            containers_share_the_pods_names_and_memory,
            process_namespaces_of_pod_and_target;
        users:
            users_are_resolved_in_the_image,
            credentials_are_those_asked_for;
        execs:
            an_exec_runs_in_the_container,
            an_exec_inherits_from_the_first_process,
            a_timeout_kills_everything_the_exec_started,
            background_processes_do_not_hold_an_exec,
            exits_are_kept_until_acknowledged;
        streams:
            a_slow_reader_loses_nothing_and_the_agent_does_not_grow,
            a_new_connection_goes_on_where_the_old_one_ended,
            stdin_is_passed_on_and_closed,
            a_host_that_dies_does_not_close_stdin,
            a_container_that_waits_for_its_disk_holds_up_no_other,
            a_terminal_has_a_size_and_an_echo,
            bad_connections_are_refused,
            a_process_without_streams_has_dev_null;
        limits:
            requests_beyond_a_bound_are_refused_by_name,
            used_and_unknown_names_are_told;
    }
    machine_only {
        limits:
            memory_limits_kill_and_are_told;
    }
}

/// What only one kind of guest can show.
mod in_namespaces_only {
    #[test]
    fn interfaces_routes_and_neighbours_are_set() {
        crate::guest::test(crate::network::start, |guest| {
            Box::pin(crate::network::interfaces_routes_and_neighbours_are_set(guest))
        });
    }
}

/// What only one kind of guest can show.
mod in_a_machine_only {
    #[test]
    #[ignore = "boots a virtual machine: runs in the node with KVM"]
    fn a_guest_without_a_console_runs_containers() {
        crate::guest::test(crate::machine::start_without_console, |guest| {
            Box::pin(crate::containers::a_container_runs_and_its_output_and_exit_code_arrive(guest))
        });
    }

    #[test]
    #[ignore = "boots a virtual machine: runs in the node with KVM"]
    fn a_container_speaks_with_hosts_over_a_tap() {
        crate::tap::test();
    }

    #[test]
    #[ignore = "boots a virtual machine: runs in the node with KVM"]
    fn an_agent_that_cannot_go_on_is_the_kernels_panic() {
        // What follows the dashes are the agent's own arguments: an option without its value.
        let (status, console) =
            crate::guest::block_on(crate::machine::boot_to_its_end("console=hvc0 -- --listen-dir"));
        assert!(!status.success(), "{status}");
        for line in [
            "bulkhead-agent: --listen-dir needs a directory",
            "Kernel panic - not syncing: Attempted to kill init! exitcode=0x00000100",
        ] {
            assert!(console.contains(line), "{line:?} is not in\n{console}");
        }
    }
}

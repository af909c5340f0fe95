//! The command over MPI, as `mpirun` starts it: numbers of ranks, forced algorithms, transports,
//! and what goes wrong [C6].

#![allow(missing_docs)]

use std::collections::BTreeSet;
use std::process::{Command, Output};
use std::time::{Duration, Instant};

/// `mpirun -n RANKS fp4-mpi ARGUMENTS`, more ranks than cores allowed, one thread each.
fn mpirun(ranks: usize, mca: &[(&str, &str)], arguments: &[&str]) -> Output {
    let mut command = Command::new("mpirun");
    command.args(["-n", &ranks.to_string(), "--oversubscribe", "--bind-to", "none"]);
    for (name, value) in mca {
        command.args(["--mca", name, value]);
    }
    // Containers build as root; a rank that spins takes its core from the others.
    for (name, value) in [
        ("OMPI_ALLOW_RUN_AS_ROOT", "1"),
        ("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1"),
        ("OMPI_MCA_mpi_yield_when_idle", "1"),
        ("OMPI_MCA_btl_vader_single_copy_mechanism", "none"),
        ("RAYON_NUM_THREADS", "1"),
    ] {
        command.env(name, value);
    }
    command.arg(env!("CARGO_BIN_EXE_fp4-mpi")).args(arguments);
    command.output().expect("mpirun is installed: apt-get install libopenmpi-dev openmpi-bin")
}

fn said(output: &Output) -> String {
    let [out, err] = [&output.stdout, &output.stderr].map(|b| String::from_utf8_lossy(b));
    format!("{out}{err}")
}

/// Outputs that a check compared; panics unless it passed.
fn compared(output: &Output) -> u64 {
    let text = said(output);
    assert!(output.status.success(), "{text}");
    let line = text.lines().find(|line| line.starts_with("check: ")).expect("a line of counts");
    println!("{line}");
    assert!(line.contains(", 0 differ"), "{line}");
    let count = line.split(" outputs compared").next().and_then(|s| s.rsplit(' ').next());
    let count = count.and_then(|n| n.parse().ok()).expect("a count");
    assert!(count > 0, "{line}");
    count
}

#[test]
fn any_number_of_ranks_gives_the_bits_of_one() {
    for ranks in [1, 2, 3, 4, 5, 8] {
        compared(&mpirun(ranks, &[], &["check"]));
    }
    compared(&mpirun(5, &[], &["check", "--uneven"]));
    // More ranks than groups of K, and outputs than ranks do not divide.
    compared(&mpirun(8, &[], &["check", "--k", "128", "--n", "5"]));
}

/// The digest of the sums of f32 that a check printed.
fn floats(output: &Output) -> String {
    let text = said(output);
    let line = text.lines().find_map(|line| line.split_once("have the digest "));
    line.expect("a digest of sums of floats").1.to_string()
}

#[test]
fn any_algorithm_of_a_reduction_gives_the_bits_of_one() {
    let small = ["check", "--k", "256", "--n", "20", "--expect"];
    // Forced by the name that the library itself knows, with the value that it has.
    let forced = |ranks, name, value: &str, options: &[&str]| {
        let mca = [("coll_tuned_use_dynamic_rules", "1"), (name, value)];
        let expected = format!("{name}={value}");
        let arguments = [options, &small, &[&expected[..]]].concat();
        let output = mpirun(ranks, &mca, &arguments);
        compared(&output);
        floats(&output)
    };
    // 1 linear, 2 non-overlapping, 3 recursive doubling, 4 ring, 5 segmented ring, 6 Rabenseifner.
    let all = ["1", "2", "3", "4", "5", "6"];
    let name = "coll_tuned_allreduce_algorithm";
    let orders: BTreeSet<_> =
        all.iter().map(|value| forced(4, name, value, &["--blocking"])).collect();
    // They were really others: sums of floats differ, and ours do not.
    println!("algorithms: {} orders of sums of floats by {} algorithms", orders.len(), all.len());
    assert!(orders.len() >= 3, "{orders:?}");
    // 1 non-overlapping, 2 recursive halving, 3 ring, 4 butterfly.
    for value in ["1", "2", "3", "4"] {
        forced(3, "coll_tuned_reduce_scatter_algorithm", value, &["--blocking"]);
    }
    // 1 ring, 2 binomial, 3 Rabenseifner, 4 recursive doubling.
    let name = "coll_libnbc_iallreduce_algorithm";
    let orders: BTreeSet<_> =
        ["1", "2", "3", "4"].iter().map(|value| forced(4, name, value, &[])).collect();
    assert!(orders.len() >= 2, "{orders:?}");
}

#[test]
fn a_parameter_that_the_library_does_not_know_or_does_not_have_so_is_an_error() {
    for (name, said_of_it) in [
        ("coll_tuned_allreduce_algorythm", "this MPI has no control variable"),
        ("coll_tuned_allreduce_algorithm", "is 0, expected 3"),
    ] {
        let output = mpirun(1, &[], &["check", "--expect", &format!("{name}=3")]);
        let text = said(&output);
        assert!(!output.status.success() && text.contains(said_of_it), "{text}");
    }
}

#[test]
fn shared_memory_and_tcp_give_the_bits_of_one() {
    // Transports are those of the layer ob1; others have their own.
    for transport in ["self,vader", "self,tcp"] {
        let mca = [("pml", "ob1"), ("btl", transport)];
        compared(&mpirun(3, &mca, &["check", "--k", "256", "--n", "20"]));
    }
}

#[test]
fn a_rank_that_rounds_its_partial_sums_is_caught() {
    let output = mpirun(3, &[], &["check", "--k", "256", "--n", "20", "--plant-fault"]);
    let text = said(&output);
    assert!(!output.status.success(), "{text}");
    let line = text.lines().find(|line| line.starts_with("check: ")).expect("a line of counts");
    println!("{line}");
    assert!(!line.contains(" 0 differ"), "{line}");
}

#[test]
fn a_rank_that_is_killed_panics_or_is_late_ends_all_of_them_within_the_limit() {
    for (fault, limit, whys) in [
        ("--kill-rank", "300", ["rank 1 kills itself between forwards", "signal 9"]),
        ("--panic-rank", "300", ["rank 1 panics on purpose", "rank 1 of 3: it has panicked"]),
        ("--late-rank", "2", ["waited 2 s for the other ranks", "rank"]),
        ("--short-rank", "20", ["a maximum (MPI_Iallreduce) failed: MPI error", "rank"]),
    ] {
        let begun = Instant::now();
        let output = mpirun(3, &[], &["--limit", limit, "check", fault, "1"]);
        let text = said(&output);
        assert!(!output.status.success(), "{text}");
        assert!(begun.elapsed() < Duration::from_secs(60), "{:?}", begun.elapsed());
        assert!(whys.iter().all(|why| text.contains(why)), "{text}");
    }
}

#[test]
fn ranks_with_other_shapes_of_a_layer_are_told_apart_on_all() {
    let output = mpirun(3, &[], &["check", "--other-rank", "2"]);
    let text = said(&output);
    assert!(!output.status.success(), "{text}");
    for rank in 0..3 {
        let line = format!("rank {rank} of 3: the ranks do not have one layer: output features is");
        assert!(text.contains(&line), "{text}");
    }
}

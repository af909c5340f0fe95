//! Every clause of the contract has cases, and the README's table says which.

#![allow(missing_docs)]

use std::collections::{BTreeMap, BTreeSet};

use fp4_conformance::suite::case::CLAUSES;
use fp4_conformance::suite::{Profile, Suite};

const README: &str = include_str!("../README.md");
const BEGIN: &str = "<!-- coverage: begin -->\n";
const END: &str = "<!-- coverage: end -->";

/// The table: for each clause, how many cases of quick check it, of which kinds, and one of each.
fn table() -> String {
    // In the order of the contract: C10 after C9.
    let place = |clause: &str| CLAUSES.iter().position(|c| *c == clause);
    let mut clauses: BTreeMap<_, BTreeMap<String, (usize, String)>> = BTreeMap::new();
    for case in Suite::new(Profile::quick()).cases() {
        let kind = case.id.split('/').take(if case.id.starts_with("core/") { 2 } else { 1 });
        let kind = kind.collect::<Vec<_>>().join("/");
        for clause in &case.clauses {
            let entry = clauses.entry((place(clause), *clause)).or_default();
            entry.entry(kind.clone()).or_insert_with(|| (0, case.id.clone())).0 += 1;
        }
    }
    let mut table = String::from("| clause | cases of `quick` | such as |\n|---|---|---|\n");
    for ((_, clause), kinds) in clauses {
        let counts: Vec<_> = kinds.iter().map(|(kind, (n, _))| format!("{n} {kind}")).collect();
        let examples: Vec<_> = kinds.values().map(|(_, id)| format!("`{id}`")).collect();
        table += &format!("| {clause} | {} | {} |\n", counts.join(", "), examples.join("<br>"));
    }
    table
}

#[test]
fn the_readme_has_the_table() {
    let table = table();
    let written = README.split_once(BEGIN).and_then(|(_, rest)| rest.split_once(END));
    let written = written.map(|(table, _)| table);
    assert_eq!(written, Some(table.as_str()), "put this between the markers:\n{table}");
}

#[test]
fn every_clause_has_cases_in_every_profile_that_comes_with_the_suite() {
    for name in ["quick", "full"] {
        let suite = Suite::new(Profile::named(name).unwrap());
        let checked: BTreeSet<_> = suite.cases().into_iter().flat_map(|c| c.clauses).collect();
        for clause in CLAUSES {
            assert!(checked.contains(clause), "no case of {name} checks {clause}");
        }
    }
}

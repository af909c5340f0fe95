//! Which modules the entries of a config's list name.
//!
//! ```text
//! lm_head                the module, all that is in it, and every module that ends in `.lm_head`
//! model.layers.*.mlp     the same, and whatever the pattern matches whole
//! re:.*(q|k)_proj$       whatever the regular expression matches from the beginning on
//! ```
//!
//! A config may list as many modules as there are layers, so names are not compared one by one:
//! what a module begins and ends with, up to each of its dots, is looked up. Patterns are tried in
//! turn, regular expressions in one pass. Those are Python's, and are read by a crate that takes no
//! time but what the text is long: so one that looks around or refers back names nothing here, and
//! neither do those past the bounds ([`Names::unread`]). Classes such as `\w` are of ASCII, as the
//! names of modules are: with all of Unicode a few letters of a config would become megabytes.

use std::collections::HashMap;
use std::iter;

use regex::bytes::{RegexBuilder, RegexSet, RegexSetBuilder};

/// How many dots of a module, from either end, are looked at: a layer is a few parts deep.
const DEPTH: usize = 32;

/// How many regular expressions of a list are read, and how long all may be together.
const MAX_REGULAR: usize = 2000;
const MAX_TEXT: usize = 1 << 16;
/// How large one may become, and all of a list.
const MAX_COMPILED: usize = 1 << 15;
const MAX_ALL: usize = 1 << 22;
/// How long a name may be to be looked for by them.
const MAX_NAME: usize = 1 << 12;

/// A list, ready to be asked.
#[derive(Debug, Default)]
pub(crate) struct Names<'c> {
    entries: Vec<&'c str>,
    /// The first place of each name.
    places: HashMap<&'c str, usize>,
    /// The entries with `*`.
    patterns: Vec<usize>,
    regular: Regular,
}

impl<'c> Names<'c> {
    /// The list of these entries.
    pub(crate) fn new(entries: impl IntoIterator<Item = &'c str>) -> Self {
        let mut names = Names::default();
        let mut regular = vec![];
        for entry in entries {
            let at = names.entries.len();
            names.entries.push(entry);
            match entry.strip_prefix("re:") {
                Some(text) => regular.push((at, text)),
                None => {
                    names.places.entry(entry).or_insert(at);
                    if entry.contains('*') {
                        names.patterns.push(at);
                    }
                }
            }
        }
        names.regular = Regular::new(regular, |text| format!("^(?:{text})"));
        names
    }

    /// The regular expressions that name nothing because they are not read.
    pub(crate) fn unread(&self) -> impl Iterator<Item = &'c str> {
        self.regular.unread().iter().map(|&at| self.entries[at])
    }

    /// Position of the first entry that names a module.
    pub(crate) fn position(&self, module: &str) -> Option<usize> {
        let beginnings = module.match_indices('.').take(DEPTH).map(|(dot, _)| &module[..dot]);
        let ends = module.rmatch_indices('.').take(DEPTH).map(|(dot, _)| &module[dot + 1..]);
        let all = iter::once(module).chain(beginnings).chain(ends);
        let exact = all.filter_map(|name| self.places.get(name)).copied().min();
        let mut patterns = self.patterns.iter().take_while(|at| exact.is_none_or(|e| **at < e));
        let pattern = patterns.find(|at| wild(self.entries[**at], module)).copied();
        [exact, pattern, self.regular.position(module)].into_iter().flatten().min()
    }

    /// The first entry that names a module.
    pub(crate) fn first(&self, module: &str) -> Option<&'c str> {
        self.position(module).map(|at| self.entries[at])
    }
}

/// Regular expressions, each with what it stands for.
#[derive(Debug, Default)]
pub(crate) struct Regular {
    /// What each of the set stands for.
    of: Vec<usize>,
    set: RegexSet,
    /// What those stand for that are not read.
    unread: Vec<usize>,
}

impl Regular {
    /// Those of these that are understood, each as `whole` makes it of its text.
    pub(crate) fn new<'t>(
        all: impl IntoIterator<Item = (usize, &'t str)>,
        whole: impl Fn(&str) -> String,
    ) -> Self {
        let builds = |text: &str| {
            RegexBuilder::new(text).unicode(false).size_limit(MAX_COMPILED).build().is_ok()
        };
        let (mut of, mut texts, mut unread, mut len) = (vec![], vec![], vec![], 0);
        for (at, text) in all {
            len += text.len();
            // By itself too: it may close what is put around it.
            let fits = len <= MAX_TEXT && of.len() < MAX_REGULAR && builds(text);
            match Some(whole(text)).filter(|whole| fits && builds(whole)) {
                Some(whole) => {
                    of.push(at);
                    texts.push(whole);
                }
                None => unread.push(at),
            }
        }
        loop {
            match RegexSetBuilder::new(&texts).unicode(false).size_limit(MAX_ALL).build() {
                Ok(set) => return Regular { of, set, unread },
                // Too large together: the first half.
                Err(_) => {
                    let half = texts.len() / 2;
                    texts.truncate(half);
                    unread.extend(of.drain(half..));
                }
            }
        }
    }

    /// What the first that matches stands for.
    pub(crate) fn position(&self, text: &str) -> Option<usize> {
        if self.set.is_empty() || text.len() > MAX_NAME {
            return None;
        }
        self.set.matches(text.as_bytes()).iter().next().map(|at| self.of[at])
    }

    /// What those stand for that are not read.
    pub(crate) fn unread(&self) -> &[usize] {
        &self.unread
    }
}

/// Does a pattern with `*` match a whole text?
pub(crate) fn wild(pattern: &str, text: &str) -> bool {
    let mut parts = pattern.split('*');
    let Some(mut rest) = parts.next().and_then(|first| text.strip_prefix(first)) else {
        return false;
    };
    let mut last = None;
    for part in parts {
        // The part before was not the last: its first place leaves the most.
        if let Some(part) = last.replace(part) {
            match rest.find(part) {
                Some(at) => rest = &rest[at + part.len()..],
                None => return false,
            }
        }
    }
    last.map_or(rest.is_empty(), |last: &str| rest.ends_with(last))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_of_lists_name_modules_as_their_loaders_take_them() {
        for (entry, module, expected) in [
            ("lm_head", "lm_head", true),
            ("lm_head", "model.lm_head", true),
            ("lm_head", "lm_head2", false),
            ("model.layers.0", "model.layers.0.mlp.up_proj", true),
            ("model.layers.1", "model.layers.10.mlp.up_proj", false),
            ("mlp.up_proj", "model.layers.10.mlp.up_proj", true),
            ("layers.10", "model.layers.10.mlp.up_proj", false),
            ("model.layers.*.self_attn*", "model.layers.3.self_attn.q_proj", true),
            ("model.layers.*.self_attn*", "model.layers.3.mlp.up_proj", false),
            ("re:.*q_proj$", "model.layers.3.self_attn.q_proj", true),
            ("re:.*q_proj$", "model.layers.3.self_attn.q_proj.x", false),
            ("re:model\\.layers\\.0.*", "model.layers.0.mlp.up_proj", true),
            ("re:.*(q|k)_proj", "model.q_proj", true),
            ("re:.*(?:q|k)_proj$", "model.v_proj", false),
            ("re:.*(q|k)+_proj", "model.q_proj", true),
            ("re:.*self_attn\\.[qkv]_proj$", "model.layers.3.self_attn.k_proj", true),
            ("re:.*self_attn\\.[qkv]_proj$", "model.layers.3.self_attn.o_proj", false),
            ("re:.*experts\\.\\d+\\.up_proj", "layers.3.mlp.experts.17.up_proj", true),
            ("re:mlp.*", "model.layers.3.mlp.up_proj", false), // from the beginning on
            ("re:model|lm_head", "lm_head", true),
            ("re:^(?!.*up_proj)model", "model.q_proj", false), // not understood
            ("re:(?i).*Q_PROJ", "model.q_proj", true),
            ("re:m\\w+\\.q", "model.q_proj", true),
            ("re:(", "(", false),
            ("re:a)|(b", "xb", false), // not one by itself
        ] {
            assert_eq!(Names::new([entry]).first(module).is_some(), expected, "{entry} {module}");
        }
        assert!(wild("a*b*c", "axxbxbc") && !wild("a*b*c", "axc") && wild("*", ""));
    }

    #[test]
    fn the_first_entry_of_several_is_given_whatever_its_kind() {
        let list = ["a.b.c", "re:a.*", "a.b", "*.c", "c", "a"];
        let names = Names::new(list);
        assert_eq!(names.first("a.b.c.d"), Some("a.b.c"));
        assert_eq!(names.first("a.b"), Some("re:a.*"));
        assert_eq!(Names::new(list[2..].to_vec()).first("x.c"), Some("*.c"));
        assert_eq!(Names::new(list[4..].to_vec()).first("a.x"), Some("a"));
        assert_eq!(names.first("b"), None);
        assert_eq!(Names::new([""]).first(""), Some(""));
    }

    #[test]
    fn regular_expressions_past_the_bounds_name_nothing_and_are_told() {
        for entry in [format!("re:{}", "a{9999}".repeat(9)), format!("re:{}", "a|".repeat(40_000))]
        {
            let names = Names::new([entry.as_str(), "re:(?=b)", "b"]);
            assert_eq!((names.position("a"), names.position("b")), (None, Some(2)));
            assert_eq!(names.unread().collect::<Vec<_>>(), [entry.as_str(), "re:(?=b)"]);
        }
        let many = vec!["re:.*x[0-9]+y"; 1500];
        let names = Names::new(many.iter().copied().chain(["re:b"]));
        assert_eq!((names.position("ax17y"), names.position("b")), (Some(0), Some(1500)));
        assert_eq!(names.unread().count(), 0);
        // As large as the bounds of one allow, and more than those of all: the first are read.
        let many = vec!["re:x\\w{60}"; 4000];
        let names = Names::new(["re:y"].into_iter().chain(many.iter().copied()));
        assert_eq!((names.position("y"), names.position("z")), (Some(0), None));
        let unread = names.unread().count();
        assert!((2001..4000).contains(&unread), "{unread}");
        assert_eq!(names.position(&format!("y{}", "z".repeat(1 << 12))), None);
    }

    #[test]
    fn as_many_full_names_as_layers_are_looked_up_and_not_compared() {
        // As many comparisons would take minutes here.
        let name = |i: usize| format!("model.layers.{}.mlp.experts.{}.up_proj", i / 256, i % 256);
        let (listed, modules): (Vec<_>, Vec<_>) =
            (0..50_000).map(|i| (name(2 * i), name(i))).unzip();
        let names = Names::new(listed.iter().map(String::as_str));
        let found = modules.iter().filter(|module| names.first(module) == Some(module));
        assert_eq!(found.count(), 25_000);
    }
}

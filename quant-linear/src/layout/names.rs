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
//! turn. Of regular expressions `.*`, `\.`, `^`, `$` and groups of alternatives are understood; one
//! with anything else names nothing here.

use std::collections::HashMap;
use std::iter;

/// How many dots of a module, from either end, are looked at: a layer is a few parts deep.
const DEPTH: usize = 32;

/// The most patterns that a regular expression's alternatives may come to, and how long it may be.
const MAX_ALTERNATIVES: usize = 64;
const MAX_REGEX: usize = 4096;

/// A list, ready to be asked.
#[derive(Debug, Default)]
pub(crate) struct Names<'c> {
    entries: Vec<&'c str>,
    /// The first place of each name.
    places: HashMap<&'c str, usize>,
    /// The entry of each pattern, and what it comes to.
    patterns: Vec<(usize, Vec<String>)>,
}

impl<'c> Names<'c> {
    /// The list of these entries.
    pub(crate) fn new(entries: impl IntoIterator<Item = &'c str>) -> Self {
        let mut names = Names::default();
        for entry in entries {
            let at = names.entries.len();
            names.entries.push(entry);
            match entry.strip_prefix("re:") {
                Some(regex) => names.patterns.push((at, regular(regex).unwrap_or_default())),
                None => {
                    names.places.entry(entry).or_insert(at);
                    if entry.contains('*') {
                        names.patterns.push((at, vec![entry.to_string()]));
                    }
                }
            }
        }
        names
    }

    /// Position of the first entry that names a module.
    pub(crate) fn position(&self, module: &str) -> Option<usize> {
        let beginnings = module.match_indices('.').take(DEPTH).map(|(dot, _)| &module[..dot]);
        let ends = module.rmatch_indices('.').take(DEPTH).map(|(dot, _)| &module[dot + 1..]);
        let all = iter::once(module).chain(beginnings).chain(ends);
        let exact = all.filter_map(|name| self.places.get(name)).copied().min();
        let mut patterns = self.patterns.iter().take_while(|(at, _)| exact.is_none_or(|e| *at < e));
        let matching = patterns.find(|(_, all)| all.iter().any(|pattern| wild(pattern, module)));
        matching.map(|(at, _)| *at).or(exact)
    }

    /// The first entry that names a module.
    pub(crate) fn first(&self, module: &str) -> Option<&'c str> {
        self.position(module).map(|at| self.entries[at])
    }
}

/// The patterns that a regular expression comes to; `None` if it is not understood.
fn regular(regex: &str) -> Option<Vec<String>> {
    if regex.len() > MAX_REGEX {
        return None;
    }
    let regex = regex.trim_start_matches('^');
    let (regex, whole) = match regex.strip_suffix('$') {
        Some(regex) => (regex, true),
        None => (regex, false),
    };
    let patterns = alternatives(regex)?.into_iter().map(|one| {
        let plain = one.replace(".*", "*").replace("\\.", ".");
        let odd = ['[', ']', '(', ')', '{', '}', '|', '+', '?', '\\', '^', '$'];
        (!plain.contains(odd)).then(|| if whole { plain } else { plain + "*" })
    });
    patterns.collect()
}

/// A regular expression once for each choice of its groups' alternatives.
fn alternatives(regex: &str) -> Option<Vec<String>> {
    let (mut all, mut rest) = (vec![String::new()], regex);
    while let Some((before, group)) = rest.split_once('(') {
        let (inside, after) = group.split_once(')')?;
        let inside = inside.strip_prefix("?:").unwrap_or(inside);
        let repeated = after.starts_with(['*', '+', '?', '{']);
        if before.ends_with('\\') || inside.contains('(') || repeated {
            return None;
        }
        let each = |one: &String| {
            let choices = inside.split('|').map(|choice| format!("{one}{before}{choice}"));
            choices.collect::<Vec<_>>()
        };
        all = all.iter().flat_map(each).take(MAX_ALTERNATIVES + 1).collect();
        if all.len() > MAX_ALTERNATIVES {
            return None;
        }
        rest = after;
    }
    all.iter_mut().for_each(|one| one.push_str(rest));
    Some(all)
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
            ("re:.*(q|k)+_proj", "model.q_proj", false), // not understood
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

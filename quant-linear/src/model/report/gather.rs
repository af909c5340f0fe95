//! Filling a report: what meets what, in the order of the model, tile by tile.

use std::borrow::Cow;
use std::collections::BTreeMap;

use crate::checkpoint::Checkpoint;
use crate::checkpoint::tiles::{DEFAULT_BLOCK_BYTES, tiles};
use crate::error::Error;
use crate::layout::LoadOptions;
use crate::layout::{Layer, Layers};
use crate::model::compare::{self, Side};
use crate::model::items::{Item, Items, Whole};
use crate::model::report::counts::Counter;
use crate::model::report::groups::{Measure, Worst};
use crate::model::report::losses::Losses;
use crate::model::report::reference::Reference;
use crate::model::report::{
    Event, Figures, MAX_ROWS, NAME_CHARS, Names, PROBLEM_CHARS, Report, Row, Source, Totals,
    VERSION, WORST, natural, shown,
};

/// What a checkpoint holds, as the other one sees it.
fn items<'a>(
    side: Whole<'a>,
    other: Option<Whole<'a>>,
    problems: &mut Names,
) -> Result<BTreeMap<Cow<'a, str>, Item<'a>>, Error> {
    let path = side.0.path().display();
    for (prefix, error) in &side.1.bad {
        problems.add(&format!("{path}: layer `{}`: {error}", named(prefix)), PROBLEM_CHARS);
    }
    Ok(Items::of(side, other)?.by_name)
}

fn named(prefix: &str) -> String {
    if prefix.is_empty() { "(no prefix)".into() } else { shown(prefix) }
}

impl Report {
    /// Reads one checkpoint, or two that belong together, and reports on them. What cannot be
    /// reported on (a layer that is not whole, shapes that differ) is among the problems.
    ///
    /// # Errors
    /// I/O errors.
    pub fn new(
        a: &Checkpoint,
        b: Option<&Checkpoint>,
        options: &LoadOptions,
        on: &mut dyn FnMut(Event<'_>),
    ) -> Result<Self, Error> {
        Self::with_losses(a, b, options, None, on)
    }

    /// As [`new`](Self::new), with what the layers lost in the run that made them.
    ///
    /// # Errors
    /// I/O errors; losses of tensors that are no quantized layers here, before anything is read.
    pub fn with_losses(
        a: &Checkpoint,
        b: Option<&Checkpoint>,
        options: &LoadOptions,
        losses: Option<&Losses>,
        on: &mut dyn FnMut(Event<'_>),
    ) -> Result<Self, Error> {
        let find = |c| Layers::find(c, options);
        let layers = [find(a)?, b.map(find).transpose()?.unwrap_or_default()];
        losses.map(|losses| losses.check(&layers)).transpose()?;
        let mut report = Report {
            version: VERSION,
            a: Source::new(a, &layers[0]),
            b: b.map(|b| Source::new(b, &layers[1])),
            totals: Totals::default(),
            formats: BTreeMap::new(),
            rows: vec![],
            rows_left_out: 0,
            worst_groups: Worst::new(WORST[1]),
            losses: None,
            identical: 0,
            only_in_a: Names::default(),
            only_in_b: Names::default(),
            problems: Names::default(),
        };
        let problems = &mut report.problems;
        let sides = ((a, &layers[0]), b.map(|b| (b, &layers[1])));
        let ours = items(sides.0, sides.1, problems)?;
        let theirs =
            sides.1.map(|(b, own)| Ok::<_, Error>((b, items((b, own), Some(sides.0), problems)?)));
        let theirs: Option<(_, _)> = theirs.transpose()?;
        let theirs = theirs.as_ref().map(|(b, items)| (*b, items));
        report.gather(a, &ours, theirs, losses, on)?;
        report.losses = losses.map(|losses| losses.run(&report.rows));
        report.bound();
        Ok(report)
    }

    /// Fills everything from the items of both.
    fn gather(
        &mut self,
        a: &Checkpoint,
        ours: &BTreeMap<Cow<'_, str>, Item<'_>>,
        theirs: Option<(&Checkpoint, &BTreeMap<Cow<'_, str>, Item<'_>>)>,
        losses: Option<&Losses>,
        on: &mut dyn FnMut(Event<'_>),
    ) -> Result<(), Error> {
        let mut work = vec![];
        for (name, item) in ours {
            let side = Side { from: a, item };
            let other = theirs.and_then(|(b, items)| Some((b, items.get(name)?)));
            match other {
                Some((from, item)) => work.push((name, side, Some(Side { from, item }))),
                None if matches!(item, Item::Layer(_)) => work.push((name, side, None)),
                None => {}
            }
            if theirs.is_some() && other.is_none() {
                self.only_in_a.add(&item.shown(name), NAME_CHARS);
            }
        }
        if let Some((from, items)) = theirs {
            for (name, item) in items.iter().filter(|(name, _)| !ours.contains_key(*name)) {
                self.only_in_b.add(&item.shown(name), NAME_CHARS);
                if matches!(item, Item::Layer(_)) {
                    work.push((name, Side { from, item }, None));
                }
            }
        }
        work.sort_by(|(a, ..), (b, ..)| natural::order(a, b));
        on(Event::Work(work.iter().map(|(_, a, b)| bytes(a) + b.as_ref().map_or(0, bytes)).sum()));
        for (name, a, b) in &work {
            on(Event::Working(name));
            self.item(name, a, b.as_ref(), losses)?;
            on(Event::Bytes(bytes(a) + b.as_ref().map_or(0, bytes)));
        }
        Ok(())
    }

    /// Reports on one name.
    fn item(
        &mut self,
        name: &str,
        a: &Side<'_>,
        b: Option<&Side<'_>>,
        losses: Option<&Losses>,
    ) -> Result<(), Error> {
        // Between two layers B is reported on; else it is the side that is a layer.
        let (layer, own, other) = match (a.item, b.map(|b| (b, b.item))) {
            (_, Some((b, Item::Layer(layer)))) => (layer, b, Some(a)),
            (Item::Layer(layer), _) => (layer, a, b),
            (Item::Dense(_), Some((b, Item::Dense(_)))) => return self.dense(name, a, b),
            (Item::Dense(_), None) => return Ok(()),
        };
        let reference = match other {
            None => None,
            Some(other) => match Reference::new(other, own.from, layer)? {
                Ok(reference) => Some((reference, bytes(other))),
                Err(problem) => {
                    self.problems.add(&format!("`{}`: {problem}", shown(name)), PROBLEM_CHARS);
                    None
                }
            },
        };
        self.layer(own.from, layer, reference.as_ref(), losses)
    }

    /// Reports on a layer.
    fn layer(
        &mut self,
        from: &Checkpoint,
        layer: &Layer,
        reference: Option<&(Reference<'_>, u64)>,
        losses: Option<&Losses>,
    ) -> Result<(), Error> {
        let shape = layer.shape;
        let decoder = layer.decoder();
        let (mut counter, mut measure) = (Counter::new(shape), Measure::new(shape, WORST[0]));
        // Dense values are what takes memory.
        for tile in tiles(shape.rows(), shape.k(), size_of::<f32>(), DEFAULT_BLOCK_BYTES) {
            let packed = layer.packed(from, &tile)?;
            counter.add(&packed, &tile);
            if let Some((reference, _)) = reference {
                let values = decoder.values(&packed, &tile);
                measure.add(&reference.values(&tile)?, &values, &tile);
            }
        }
        let measured = reference.map(|_| measure.finish());
        let (difference, groups, worst) = match measured {
            Some((difference, groups, worst)) => (Some(difference), Some(groups), Some(worst)),
            None => (None, None, None),
        };
        let row = Row {
            name: named(&layer.module),
            layout: layer.layout.name(),
            format: layer.format().map_or("none".into(), |format| format.to_string()),
            shape: layer.dense_shape(),
            transformed: layer.transform.is_some(),
            bytes: layer.byte_len(),
            reference_bytes: reference.map(|(_, bytes)| *bytes),
            global_scale: Some(layer.scalars.weight_global_scale),
            counts: Some(counter.finish()),
            error: difference.as_ref().map(Figures::from),
            groups,
            worst_groups: worst,
            loss: losses.and_then(|losses| losses.of(&layer.module)),
        };
        self.totals.add(&row, difference.as_ref());
        self.formats.entry(row.format.clone()).or_default().add(&row, difference.as_ref());
        if let Some(worst) = &row.worst_groups {
            self.worst_groups.merge(worst, &row.name);
        }
        self.rows.push(row);
        Ok(())
    }

    /// Reports on two dense tensors, if they differ.
    fn dense(&mut self, name: &str, a: &Side<'_>, b: &Side<'_>) -> Result<(), Error> {
        let pair = match compare::compare(&[*a, *b])? {
            Ok(pair) => pair,
            Err(problem) => {
                self.problems.add(&format!("`{}`: {problem}", shown(name)), PROBLEM_CHARS);
                return Ok(());
            }
        };
        if pair.identical {
            self.identical += 1;
            return Ok(());
        }
        let types = [a, b].map(|side| match side.item {
            Item::Dense(dense) => dense.tensor.type_name(),
            Item::Layer(_) => String::new(),
        });
        self.rows.push(Row {
            name: shown(name),
            layout: "dense",
            format: if types[0] == types[1] { types[0].clone() } else { types.join(" / ") },
            shape: pair.shape.to_vec(),
            transformed: false,
            bytes: bytes(b),
            reference_bytes: Some(bytes(a)),
            global_scale: None,
            counts: None,
            error: pair.difference.as_ref().map(Figures::from),
            groups: None,
            worst_groups: None,
            loss: None,
        });
        Ok(())
    }

    /// Leaves out rows beyond the limit.
    fn bound(&mut self) {
        let Some(over) = self.rows.len().checked_sub(MAX_ROWS + 1) else { return };
        self.rows_left_out = over + 1;
        // By error where there is one, and then by size; what is kept stays in the model's order.
        let rank = |row: &Row| (row.error.map_or(-1.0, |e| e.relative_error), row.bytes);
        let mut ranks: Vec<_> = self.rows.iter().map(rank).enumerate().collect();
        ranks.sort_by(|(i, (a, a_bytes)), (j, (b, b_bytes))| {
            b.total_cmp(a).then(b_bytes.cmp(a_bytes)).then(i.cmp(j))
        });
        let mut keep = vec![false; self.rows.len()];
        ranks.iter().take(MAX_ROWS).for_each(|(i, _)| keep[*i] = true);
        let mut keep = keep.into_iter();
        self.rows.retain(|_| keep.next() == Some(true));
    }
}

fn bytes(side: &Side<'_>) -> u64 {
    side.item.byte_len()
}

//! Answers a query: which rows, in which order, and the JSON text of the answer.
//!
//! Rows are never collected for an answer in commit or uid order, and compositions are written when the client takes
//! them: a page costs what is on it, an answer without a limit needs no memory, and counts over windows of
//! commit time and template are arithmetic. Every other condition is a walk over the window of commit times. To that
//! comes, for every query, a look at each composition that was changed or added since the start.

use std::{
    cmp::Ordering,
    collections::BTreeMap,
    fmt::Write as _,
    iter,
    ops::Range,
    sync::{Arc, atomic::Ordering::Relaxed},
};

use bytes::Bytes;
use jiff::{Timestamp, tz::Offset};
use serde_json::{Map, Value, json};
use uuid::Uuid;

use crate::{
    aql::{Column, Order, Path, Query, Refusal, Select},
    content::{self, Profile, Subject},
    counters::Tally,
    filter::{Bounds, Filter, SYSTEM_ID},
    quirks::Quirks,
    templates::Template,
    world::{Row, World},
};

/// The EHRbase that the server behaves like, where they differ.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Release {
    /// Pretty-prints compositions inside rows, cannot do `COUNT(*)` with parameters, answers a bare list of revisions.
    Ehrbase2_16,
    /// Compact rows, a revision history object.
    #[default]
    Ehrbase2_31,
}

/// How answers are written.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Style {
    pub(crate) profile: Profile,
    pub(crate) release: Release,
}

/// What the body of `POST /query/aql` asks for.
#[derive(Debug)]
pub(crate) struct Request {
    text: String,
    query: Query,
    parameters: Map<String, Value>,
    fetch: Option<u64>,
    offset: u64,
}

/// What a query is about, for counters and faults.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Whole compositions.
    Page,
    /// Rows without compositions.
    List,
    /// Counts.
    Aggregate,
}

impl Request {
    pub(crate) fn parse(body: &[u8]) -> Result<Self, Refusal> {
        let body: Map<String, Value> = serde_json::from_slice(body)
            .map_err(|_| Refusal::bad_request("The body is not a JSON object"))?;
        let Some(Value::String(text)) = body.get("q") else {
            return Err(Refusal::bad_request("The query `q` is missing"));
        };
        let parameters = match body.get("query_parameters") {
            None | Some(Value::Null) => Map::new(),
            Some(Value::Object(parameters)) => parameters.clone(),
            Some(_) => return Err(Refusal::internal()),
        };
        let query = Query::parse(text)?;
        let fetch = whole_number(body.get("fetch"))?;
        let offset = whole_number(body.get("offset"))?;
        let in_text = query.limit.is_some();
        if offset.is_some() && fetch.is_none() || in_text && (fetch.is_some() || offset.is_some()) {
            return Err(Refusal {
                status: 422,
                message: "Query contains a LIMIT clause, or an offset without fetch".into(),
            });
        }
        Ok(Self {
            text: text.clone(),
            fetch: fetch.or(query.limit),
            offset: offset.or(query.offset).unwrap_or(0),
            query,
            parameters,
        })
    }

    pub(crate) fn kind(&self) -> Kind {
        let selects = |wanted: fn(&Select) -> bool| {
            self.query
                .columns
                .iter()
                .any(|column| wanted(&column.select))
        };
        if selects(|select| !matches!(select, Select::Path(_))) {
            Kind::Aggregate
        } else if selects(|select| *select == Select::Path(Path::Composition)) {
            Kind::Page
        } else {
            Kind::List
        }
    }

    /// The answer at `now_us`, in pieces that are made as they are taken.
    pub(crate) fn answer(
        self,
        world: Arc<World>,
        now_us: i64,
        style: Style,
        quirks: Arc<Quirks>,
        tally: Arc<Tally>,
    ) -> Result<Box<dyn Iterator<Item = Bytes> + Send>, Refusal> {
        if let (Some(fetch), Some(most)) = (self.fetch, quirks.max_fetch)
            && fetch > most
        {
            return Err(Refusal {
                status: 422,
                message: format!("Fetch parameter {fetch} exceeds maximum fetch {most}"),
            });
        }
        let filter = Filter::bind(self.query.condition.as_ref(), &self.parameters, &quirks)?;
        let search = Search {
            bounds: filter.bounds(),
            filter,
            order: self.query.order.clone(),
            world,
            now_us,
            quirks,
            tally,
        };
        if self.kind() == Kind::Aggregate {
            let counts_all = |column: &Column| column.select == Select::CountAll;
            if style.release == Release::Ehrbase2_16
                && !self.parameters.is_empty()
                && self.query.columns.iter().any(counts_all)
            {
                return Err(Refusal::internal());
            }
            return self.grouped(&search);
        }
        let (mut size, mut unreadable) = (0_u64, false);
        let reads_content = self.kind() == Kind::Page && search.world.has_unreadable();
        for row in self.page(search.rows(), &search.quirks) {
            size += 1;
            unreadable |= reads_content && search.world.is_unreadable(row.number);
        }
        if unreadable {
            return Err(Refusal::internal());
        }
        let columns = self.query.columns.clone();
        let start = Bytes::from(self.start(now_us, size));
        let mut rows = self.page(search.rows(), &search.quirks).peekable();
        let mut first = true;
        let mut ended = false;
        let body = iter::from_fn(move || {
            if ended {
                return None;
            }
            let mut piece = String::with_capacity(PIECE + 16 * 1024);
            while piece.len() < PIECE {
                let Some(row) = rows.next() else {
                    piece.push_str("]}");
                    ended = true;
                    break;
                };
                piece.push_str(if std::mem::take(&mut first) {
                    "["
                } else {
                    ",["
                });
                for (at, column) in columns.iter().enumerate() {
                    if at > 0 {
                        piece.push(',');
                    }
                    if let Select::Path(path) = column.select {
                        write_value(&mut piece, path, &row, &search, style);
                    }
                }
                piece.push(']');
            }
            Some(Bytes::from(piece))
        });
        Ok(Box::new(iter::once(start).chain(body)))
    }

    fn page(
        &self,
        rows: Box<dyn Iterator<Item = Row> + Send>,
        quirks: &Quirks,
    ) -> Box<dyn Iterator<Item = Row> + Send> {
        let skip = usize::try_from(self.offset).unwrap_or(usize::MAX);
        let take = match quirks.has_no_pages && self.kind() == Kind::Page {
            true => 0,
            false => self.most_rows(quirks),
        };
        Box::new(rows.skip(skip).take(take))
    }

    fn most_rows(&self, quirks: &Quirks) -> usize {
        let asked = self.fetch.unwrap_or(u64::MAX);
        let most = asked.min(quirks.most_rows.unwrap_or(u64::MAX));
        usize::try_from(most).unwrap_or(usize::MAX)
    }

    fn grouped(&self, search: &Search) -> Result<Box<dyn Iterator<Item = Bytes> + Send>, Refusal> {
        let keys: Vec<Path> = self
            .query
            .columns
            .iter()
            .filter_map(|column| match column.select {
                Select::Path(path) => Some(path),
                _ => None,
            })
            .collect();
        if keys
            .iter()
            .any(|path| !matches!(path, Path::TemplateId | Path::EhrId | Path::ChangeType))
        {
            return Err(Refusal::bad_request(
                "Not implemented: SELECT: path beside an aggregate function is not supported",
            ));
        }
        let mut groups: Vec<(GroupKey, Group)> = search.groups(&keys).into_iter().collect();
        groups.sort_by(|(a, _), (b, _)| {
            self.query
                .order
                .iter()
                .map(|order| {
                    let ordering = a.text(order.path).cmp(&b.text(order.path));
                    if order.descending {
                        ordering.reverse()
                    } else {
                        ordering
                    }
                })
                .fold(Ordering::Equal, Ordering::then)
        });
        let skip = usize::try_from(self.offset).unwrap_or(usize::MAX);
        let take = self.most_rows(&search.quirks);
        let rows: Vec<Value> = groups
            .into_iter()
            .skip(skip)
            .take(take)
            .map(|(key, group)| {
                self.query
                    .columns
                    .iter()
                    .map(|column| match column.select {
                        Select::Path(path) => json!(key.text(path)),
                        Select::Count | Select::CountAll => json!(group.count),
                        Select::Min(path) => time_value(group.min_us, path),
                        Select::Max(path) => time_value(group.max_us, path),
                    })
                    .collect()
            })
            .collect();
        let mut text = self.start(search.now_us, rows.len() as u64);
        for (at, row) in rows.iter().enumerate() {
            let _ = write!(text, "{}{row}", if at > 0 { "," } else { "" });
        }
        text.push_str("]}");
        Ok(Box::new(iter::once(Bytes::from(text))))
    }

    /// The answer up to the first row.
    fn start(&self, now_us: i64, size: u64) -> String {
        let columns: Vec<Value> = self
            .query
            .columns
            .iter()
            .enumerate()
            .map(|(at, column)| {
                let name = column.alias.clone().unwrap_or_else(|| format!("#{at}"));
                match column.select {
                    Select::Path(_) => json!({"path": column.text, "name": name}),
                    _ => json!({"name": name}),
                }
            })
            .collect();
        let mut meta = String::from(r#"{"meta":{"_type":"RESULTSET","_schema_version":"1.0.3""#);
        let _ = write!(
            meta,
            r#","_created":"{}","_executed_aql":{}"#,
            time_text(now_us),
            json!(self.executed())
        );
        if let Some(fetch) = self.fetch {
            let _ = write!(meta, r#","fetch":{fetch},"offset":{}"#, self.offset);
        }
        let _ = write!(
            meta,
            r#","resultsize":{size}}},"q":{},"columns":{},"rows":["#,
            json!(self.text),
            json!(columns)
        );
        meta
    }

    /// The query with its values: what EHRbase shows in `meta`.
    fn executed(&self) -> String {
        let mut text = String::with_capacity(self.text.len());
        let mut end = 0;
        for (at, name) in &self.query.parameters {
            text.push_str(&self.text[end..at.start]);
            end = at.end;
            let value = self.parameters.get(name).unwrap_or(&Value::Null);
            let values = match value {
                Value::Array(values) => values.as_slice(),
                value => std::slice::from_ref(value),
            };
            for (place, value) in values.iter().enumerate() {
                if place > 0 {
                    text.push(',');
                }
                match value {
                    Value::String(value) => {
                        let _ = write!(
                            text,
                            "'{}'",
                            value.replace('\\', "\\\\").replace('\'', "\\'")
                        );
                    }
                    value => {
                        let _ = write!(text, "{value}");
                    }
                }
            }
        }
        text.push_str(&self.text[end..]);
        text
    }
}

/// Bytes of an answer that are made at once.
const PIECE: usize = 64 * 1024;

/// A number of rows as EHRbase reads it: a number or its text; negative ones break it.
fn whole_number(value: Option<&Value>) -> Result<Option<u64>, Refusal> {
    let number = match value {
        None | Some(Value::Null) => return Ok(None),
        Some(Value::Number(number)) => number.as_i64(),
        Some(Value::String(text)) => text.parse().ok(),
        Some(_) => None,
    };
    match number {
        None => Err(Refusal::bad_request(
            "`fetch` and `offset` are whole numbers",
        )),
        Some(number) => match u64::try_from(number) {
            Ok(number) => Ok(Some(number)),
            Err(_) => Err(Refusal::internal()),
        },
    }
}

/// A query's rows in its world.
struct Search {
    world: Arc<World>,
    filter: Filter,
    bounds: Bounds,
    order: Vec<Order>,
    now_us: i64,
    quirks: Arc<Quirks>,
    tally: Arc<Tally>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct GroupKey {
    template: Option<Template>,
    ehr_id: Option<u128>,
    change: Option<&'static str>,
}

impl GroupKey {
    fn text(&self, path: Path) -> Option<String> {
        match path {
            Path::TemplateId => self.template.map(|template| template.id().to_owned()),
            Path::EhrId => self.ehr_id.map(|id| Uuid::from_u128(id).to_string()),
            Path::ChangeType => self.change.map(str::to_owned),
            _ => None,
        }
    }
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Group {
    count: u64,
    min_us: Option<i64>,
    max_us: Option<i64>,
}

impl Group {
    fn add(&mut self, count: u64, min_us: i64, max_us: i64) {
        self.count += count;
        self.min_us = Some(self.min_us.map_or(min_us, |known| known.min(min_us)));
        self.max_us = Some(self.max_us.map_or(max_us, |known| known.max(max_us)));
    }
}

type Rows = Box<dyn Iterator<Item = Row> + Send>;

impl Search {
    fn rows(&self) -> Rows {
        if let Some(among) = &self.bounds.among {
            let named = among
                .iter()
                .filter_map(|id| self.world.row(self.world.find(*id)?, self.now_us))
                .inspect(|_| self.tally.examine());
            return self.sorted(named);
        }
        let ascending: Option<Vec<Path>> = self
            .order
            .iter()
            .map(|order| (!order.descending).then_some(order.path))
            .collect();
        match ascending.as_deref() {
            Some([] | [Path::Time] | [Path::Time, Path::Uid]) => self.by_time(),
            // An object id occurs once: what else to order by makes no difference.
            Some([Path::Uid, ..]) => self.by_uid(),
            _ => self.sorted(self.by_time()),
        }
    }

    /// The commit time of a row as this server prints it.
    fn time_text(&self, row: &Row) -> String {
        match self.quirks.nanos(row) {
            0 => time_text(row.committed_us),
            nanos => {
                let whole = time_text(row.committed_us.div_euclid(1_000_000) * 1_000_000);
                let micros = row.committed_us.rem_euclid(1_000_000);
                format!("{}.{micros:06}{nanos:03}Z", whole.trim_end_matches('Z'))
            }
        }
    }

    fn sorted(&self, rows: impl Iterator<Item = Row>) -> Rows {
        let mut rows: Vec<Row> = rows
            .filter(|row| self.filter.holds(row, &self.world, &self.quirks))
            .collect();
        rows.sort_by_key(|row| (row.committed_us, row.object_id));
        rows.sort_by(|a, b| {
            self.order
                .iter()
                .map(|order| {
                    let ordering = match order.path {
                        Path::Uid => a.object_id.cmp(&b.object_id),
                        Path::Time | Path::TimeText => a.committed_us.cmp(&b.committed_us),
                        Path::TemplateId => a.template.id().cmp(b.template.id()),
                        Path::ChangeType => a.change.name().cmp(b.change.name()),
                        // Ids of EHRs are in the order of their patients' numbers.
                        Path::EhrId => a.patient.cmp(&b.patient),
                        Path::Composition => Ordering::Equal,
                    };
                    if order.descending {
                        ordering.reverse()
                    } else {
                        ordering
                    }
                })
                .fold(Ordering::Equal, Ordering::then)
        });
        Box::new(rows.into_iter())
    }

    /// The numbers of the base that were committed inside the bounds.
    fn window(&self) -> Range<u64> {
        let base = self.world.base();
        let start = base.first_at(self.bounds.time.0);
        let end = match self.bounds.time.1.checked_add(1) {
            Some(end) => base.first_at(end),
            None => base.size(),
        };
        start..end.max(start)
    }

    fn by_time(&self) -> Rows {
        let world = Arc::clone(&self.world);
        let tally = Arc::clone(&self.tally);
        let templates = self.bounds.templates.clone();
        let base = self.window().filter_map(move |number| {
            tally.examine();
            if !templates.contains(&world.base().template(number)) {
                return None;
            }
            world.base_row(number)
        });
        self.merged(base, |row| (row.committed_us, row.object_id))
    }

    fn by_uid(&self) -> Rows {
        let world = Arc::clone(&self.world);
        let tally = Arc::clone(&self.tally);
        let (low, high) = self.bounds.object_ids;
        let start = world.base().first_rank_at(low);
        let end = match high.checked_add(1) {
            Some(end) => world.base().first_rank_at(end),
            None => world.base().size(),
        };
        let base = (start..end.max(start)).filter_map(move |rank| {
            tally.examine();
            world.base_row(world.base().at_rank(rank))
        });
        self.merged(base, |row| (0, row.object_id))
    }

    /// Rows of the base together with changed ones, in the order of `key`, as far as the filter holds.
    fn merged(
        &self,
        base: impl Iterator<Item = Row> + Send + 'static,
        key: fn(&Row) -> (i64, u128),
    ) -> Rows {
        let mut changed: Vec<Row> = self
            .world
            .changed_rows(self.now_us)
            .filter(|row| self.bounds.contains(row))
            .collect();
        changed.sort_by_key(key);
        let (mut base, mut changed) = (base.peekable(), changed.into_iter().peekable());
        let (filter, world) = (self.filter.clone(), Arc::clone(&self.world));
        let quirks = Arc::clone(&self.quirks);
        let all = iter::from_fn(move || match (base.peek(), changed.peek()) {
            (Some(a), Some(b)) if key(b) < key(a) => changed.next(),
            (Some(_), _) => base.next(),
            (None, _) => changed.next(),
        });
        Box::new(all.filter(move |row| filter.holds(row, &world, &quirks)))
    }

    fn groups(&self, keys: &[Path]) -> BTreeMap<GroupKey, Group> {
        let key_of = |row: &Row| GroupKey {
            template: keys.contains(&Path::TemplateId).then_some(row.template),
            ehr_id: keys
                .contains(&Path::EhrId)
                .then(|| self.world.base().ehr_id(row.patient)),
            change: keys.contains(&Path::ChangeType).then(|| row.change.name()),
        };
        let mut groups = BTreeMap::<GroupKey, Group>::new();
        if keys.is_empty() {
            groups.insert(
                GroupKey {
                    template: None,
                    ehr_id: None,
                    change: None,
                },
                Group::default(),
            );
        }
        let by_template = keys.iter().all(|path| *path == Path::TemplateId);
        if !(self.bounds.exact && self.bounds.among.is_none() && by_template) {
            for row in self.rows() {
                let group = groups.entry(key_of(&row)).or_default();
                group.add(1, row.committed_us, row.committed_us);
            }
            return groups;
        }
        for template in &self.bounds.templates {
            let key = GroupKey {
                template: keys.contains(&Path::TemplateId).then_some(*template),
                ehr_id: None,
                change: None,
            };
            if let Some((count, min_us, max_us)) = self.count_in_base(*template) {
                groups.entry(key).or_default().add(count, min_us, max_us);
            }
        }
        let changed = self.world.changed_rows(self.now_us);
        for row in changed.filter(|row| self.bounds.contains(row)) {
            let group = groups.entry(key_of(&row)).or_default();
            group.add(1, row.committed_us, row.committed_us);
        }
        groups
    }

    /// Number, first and last commit time of the unchanged compositions of `template` in the window; none: `None`.
    fn count_in_base(&self, template: Template) -> Option<(u64, i64, i64)> {
        let (base, window) = (self.world.base(), self.window());
        let changed = self
            .world
            .changed_in(window.clone())
            .filter(|number| base.template(*number) == template)
            .count() as u64;
        let count = base.count(template, window.clone()).checked_sub(changed)?;
        let is_one = |number: &u64| {
            self.tally.examine();
            base.template(*number) == template && self.world.base_row(*number).is_some()
        };
        if count == 0 {
            return None;
        }
        let first = window.clone().find(is_one)?;
        let last = window.rev().find(is_one)?;
        Some((count, base.committed_us(first), base.committed_us(last)))
    }
}

fn write_value(out: &mut String, path: Path, row: &Row, search: &Search, style: Style) {
    let quoted = |out: &mut String, text: &dyn std::fmt::Display| {
        let _ = write!(out, "\"{text}\"");
    };
    match path {
        Path::Uid if search.quirks.branches.contains(&row.number) => quoted(
            out,
            &format!("{}.1.2", version_uid(row.object_id, row.version)),
        ),
        Path::Uid => quoted(out, &version_uid(row.object_id, row.version)),
        Path::Time => {
            let _ = write!(
                out,
                r#"{{"_type":"DV_DATE_TIME","value":"{}"}}"#,
                search.time_text(row)
            );
        }
        Path::TimeText => quoted(out, &search.time_text(row)),
        Path::ChangeType if search.quirks.no_change_type.contains(&row.number) => {
            out.push_str("null");
        }
        Path::ChangeType => quoted(out, &row.change.name()),
        Path::EhrId => quoted(
            out,
            &Uuid::from_u128(search.world.base().ehr_id(row.patient)),
        ),
        Path::TemplateId => quoted(out, &row.template.id()),
        Path::Composition if search.quirks.no_object.contains(&row.number) => {
            quoted(out, &"no composition");
        }
        Path::Composition => {
            search.tally.compositions.fetch_add(1, Relaxed);
            write_composition(out, row, &search.world, style);
        }
    }
}

/// Writes the composition of `row` as it stands in a row of an answer.
pub(crate) fn write_composition(out: &mut String, row: &Row, world: &World, style: Style) {
    let uid = version_uid(row.object_id, row.version);
    let subject = Subject {
        seed: world.base().seed(),
        number: row.number,
        version: row.version,
        uid: &uid,
        template: row.template,
        committed_us: world.created_us(row.number),
    };
    match style.release {
        Release::Ehrbase2_31 => content::write(out, subject, style.profile),
        Release::Ehrbase2_16 => {
            let mut compact = String::new();
            content::write(&mut compact, subject, style.profile);
            out.push_str(&content::pretty(&compact));
        }
    }
}

pub(crate) fn version_uid(object_id: u128, version: u32) -> String {
    format!("{}::{SYSTEM_ID}::{version}", Uuid::from_u128(object_id))
}

fn time_value(us: Option<i64>, path: Path) -> Value {
    match (us, path) {
        (None, _) => Value::Null,
        (Some(us), Path::Time) => json!({"_type": "DV_DATE_TIME", "value": time_text(us)}),
        (Some(us), _) => json!(time_text(us)),
    }
}

/// A time as EHRbase prints it: the fraction without trailing zeros, so of no fixed width.
pub(crate) fn time_text(us: i64) -> String {
    let at = Timestamp::from_microsecond(us).unwrap_or(Timestamp::MIN);
    let at = Offset::UTC.to_datetime(at);
    let mut text = format!(
        "{:04}-{:02}-{:02}T{:02}:{:02}:{:02}.{:06}",
        at.year(),
        at.month(),
        at.day(),
        at.hour(),
        at.minute(),
        at.second(),
        at.subsec_nanosecond() / 1000
    );
    text.truncate(text.trim_end_matches('0').trim_end_matches('.').len());
    text.push('Z');
    text
}

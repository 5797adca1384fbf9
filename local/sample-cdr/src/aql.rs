//! The part of AQL that the sample server understands, as a syntax tree.
//!
//! ```text
//! query   = SELECT column {"," column} FROM from [WHERE or] [ORDER BY path [ASC|DESC] {"," …}] [LIMIT n [OFFSET n]]
//! column  = (path | COUNT "(" (path | "*") ")" | MIN "(" path ")" | MAX "(" path ")") [AS name]
//! from    = [EHR e CONTAINS] VERSION v ["[" LATEST_VERSION "]"] CONTAINS COMPOSITION c
//! or      = and {OR and}        and = test {AND test}
//! test    = NOT test | "(" or ")" | path ("=" | "!=" | "<" | "<=" | ">" | ">=") operand | path matches "{" operand {"," operand} "}"
//! operand = $parameter | 'text' | "text" | number
//! ```
//! Whatever else AQL has is refused, and so is a path that EHRbase refuses at that place.

use std::ops::Range;

/// A query that cannot be answered: the HTTP status and the sentence for the body.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Refusal {
    pub(crate) status: u16,
    pub(crate) message: String,
}

impl Refusal {
    pub(crate) fn bad_request(message: impl Into<String>) -> Self {
        Self {
            status: 400,
            message: message.into(),
        }
    }

    /// EHRbase says nothing about what went wrong inside.
    pub(crate) fn internal() -> Self {
        Self {
            status: 500,
            message: "An internal error has occurred. Please contact your administrator.".into(),
        }
    }
}

/// What can be asked about a composition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Path {
    /// `v/uid/value` or `c/uid/value`
    Uid,
    /// `v/commit_audit/time_committed`, a DV_DATE_TIME
    Time,
    /// `v/commit_audit/time_committed/value`, its text
    TimeText,
    /// `v/commit_audit/change_type/value`
    ChangeType,
    /// `e/ehr_id/value`
    EhrId,
    /// `c/archetype_details/template_id/value`
    TemplateId,
    /// `c`
    Composition,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Select {
    Path(Path),
    /// `COUNT(*)`
    CountAll,
    Count,
    Min(Path),
    Max(Path),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Column {
    pub(crate) select: Select,
    /// As the query has it, for the answer's `columns`.
    pub(crate) text: String,
    pub(crate) alias: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Comparison {
    Equal,
    NotEqual,
    Less,
    AtMost,
    Greater,
    AtLeast,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Operand {
    Parameter(String),
    Text(String),
    Number(String),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Condition {
    And(Vec<Condition>),
    Or(Vec<Condition>),
    Not(Box<Condition>),
    Compare(Path, Comparison, Operand),
    Matches(Path, Vec<Operand>),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Order {
    pub(crate) path: Path,
    /// As the query has it.
    pub(crate) text: String,
    pub(crate) descending: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Query {
    pub(crate) columns: Vec<Column>,
    pub(crate) condition: Option<Condition>,
    pub(crate) order: Vec<Order>,
    pub(crate) limit: Option<u64>,
    pub(crate) offset: Option<u64>,
    /// Where parameters stand in the text, for the answer's `meta`.
    pub(crate) parameters: Vec<(Range<usize>, String)>,
}

impl Query {
    pub(crate) fn parse(text: &str) -> Result<Self, Refusal> {
        let tokens = tokens(text)?;
        let parameters = tokens
            .iter()
            .filter_map(|token| match &token.kind {
                Kind::Parameter(name) => Some((token.at.clone(), name.clone())),
                _ => None,
            })
            .collect();
        let mut parser = Parser {
            text,
            tokens: &tokens,
            at: 0,
            names: Names::default(),
            depth: 0,
        };
        let query = parser.query(parameters)?;
        check(&query)?;
        Ok(query)
    }
}

/// What EHRbase refuses although the grammar allows it.
fn check(query: &Query) -> Result<(), Refusal> {
    for order in &query.order {
        let whole = format!("{}/value", order.text);
        let selected = |column: &Column| column.text == order.text || column.text == whole;
        if !query.columns.iter().any(selected) {
            return Err(Refusal::bad_request(format!(
                "Not implemented: ORDER BY: Path: {} is not present in SELECT statement",
                order.text
            )));
        }
        if matches!(order.path, Path::TimeText | Path::Composition) {
            return Err(unsupported("ORDER BY"));
        }
    }
    for column in &query.columns {
        let time_only = match column.select {
            Select::Min(path) | Select::Max(path) => matches!(path, Path::Time | Path::TimeText),
            _ => true,
        };
        if !time_only {
            return Err(unsupported("SELECT: aggregate function"));
        }
    }
    Ok(())
}

fn unsupported(what: &str) -> Refusal {
    Refusal::bad_request(format!("Not implemented: {what}: path is not supported"))
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Kind {
    /// Keywords, names and paths.
    Word(String),
    Parameter(String),
    Text(String),
    Number(String),
    Symbol(&'static str),
    End,
}

#[derive(Debug, Clone)]
struct Token {
    kind: Kind,
    at: Range<usize>,
}

fn tokens(text: &str) -> Result<Vec<Token>, Refusal> {
    const SYMBOLS: [&str; 15] = [
        "!=", "<>", "<=", ">=", "=", "<", ">", "(", ")", "{", "}", ",", "[", "]", "*",
    ];
    let mut tokens = Vec::new();
    let mut rest = text;
    loop {
        rest = rest.trim_start();
        let start = text.len() - rest.len();
        let Some(first) = rest.chars().next() else {
            tokens.push(Token {
                kind: Kind::End,
                at: start..start,
            });
            return Ok(tokens);
        };
        let word_end = |text: &str| {
            text.find(|c: char| !(c.is_ascii_alphanumeric() || matches!(c, '_' | '/' | '-' | '.')))
                .unwrap_or(text.len())
        };
        let (kind, length) = if let Some(symbol) = SYMBOLS.iter().find(|s| rest.starts_with(**s)) {
            (Kind::Symbol(symbol), symbol.len())
        } else if first == '\'' || first == '"' {
            let (value, length) = quoted(rest, first).ok_or_else(|| syntax(text, start))?;
            (Kind::Text(value), length)
        } else if first == '$' {
            let length = 1 + word_end(&rest[1..]);
            (Kind::Parameter(rest[1..length].to_owned()), length)
        } else if first.is_ascii_digit() || first == '-' {
            let length = 1 + word_end(&rest[1..]);
            (Kind::Number(rest[..length].to_owned()), length)
        } else if first.is_ascii_alphabetic() || first == '_' {
            let length = word_end(rest);
            (Kind::Word(rest[..length].to_owned()), length)
        } else {
            return Err(syntax(text, start));
        };
        tokens.push(Token {
            kind,
            at: start..start + length,
        });
        rest = &rest[length..];
    }
}

/// The value of a quoted text at the start of `rest`, and how long it is with its quotes.
fn quoted(rest: &str, quote: char) -> Option<(String, usize)> {
    let mut value = String::new();
    let mut chars = rest.char_indices().skip(1);
    while let Some((at, c)) = chars.next() {
        if c == quote {
            return Some((value, at + 1));
        }
        value.push(if c == '\\' { chars.next()?.1 } else { c });
    }
    None
}

fn syntax(text: &str, at: usize) -> Refusal {
    let before = &text[..at];
    let line = before.matches('\n').count() + 1;
    let column = before.len() - before.rfind('\n').map_or(0, |newline| newline + 1);
    Refusal::bad_request(format!(
        "Could not parse AQL query: Parse exception: line {line}: char {column} unexpected input"
    ))
}

/// What the FROM clause calls things.
#[derive(Debug, Default)]
struct Names {
    ehr: Option<String>,
    version: String,
    composition: String,
}

struct Parser<'a> {
    text: &'a str,
    tokens: &'a [Token],
    at: usize,
    names: Names,
    depth: usize,
}

/// Parentheses and NOTs deeper than this are refused: the parser and what reads its tree are recursive.
const DEEPEST: usize = 64;

impl Parser<'_> {
    fn query(&mut self, parameters: Vec<(Range<usize>, String)>) -> Result<Query, Refusal> {
        self.keyword("SELECT")?;
        // Names are defined by FROM, which comes after they are used.
        let columns_at = self.at;
        while !self.is_keyword("FROM") {
            if self.peek() == &Kind::End {
                return Err(self.unexpected());
            }
            self.at += 1;
        }
        self.names = self.from()?;
        let after_from = std::mem::replace(&mut self.at, columns_at);
        let columns = self.list(Self::column)?;
        if !self.is_keyword("FROM") {
            return Err(self.unexpected());
        }
        self.at = after_from;
        let condition = match self.take_keyword("WHERE") {
            true => Some(self.or()?),
            false => None,
        };
        let order = match self.take_keyword("ORDER") {
            true => {
                self.keyword("BY")?;
                self.list(Self::order)?
            }
            false => Vec::new(),
        };
        let (mut limit, mut offset) = (None, None);
        if self.take_keyword("LIMIT") {
            limit = Some(self.number()?);
            if self.take_keyword("OFFSET") {
                offset = Some(self.number()?);
            }
        }
        match self.peek() {
            Kind::End => Ok(Query {
                columns,
                condition,
                order,
                limit,
                offset,
                parameters,
            }),
            _ => Err(self.unexpected()),
        }
    }

    fn from(&mut self) -> Result<Names, Refusal> {
        self.keyword("FROM")?;
        let mut names = Names::default();
        if self.take_keyword("EHR") {
            names.ehr = Some(self.name()?);
            self.keyword("CONTAINS")?;
        }
        self.keyword("VERSION")?;
        names.version = self.name()?;
        if self.take_symbol("[") {
            if !self.take_keyword("LATEST_VERSION") {
                return Err(Refusal::bad_request(
                    "Not implemented: Only VERSION queries without predicate or on LATEST_VERSION supported",
                ));
            }
            self.symbol("]")?;
        }
        self.keyword("CONTAINS")?;
        self.keyword("COMPOSITION")?;
        names.composition = self.name()?;
        Ok(names)
    }

    fn column(&mut self) -> Result<Column, Refusal> {
        let start = self.tokens[self.at].at.start;
        let select = if self.take_keyword("COUNT") {
            self.symbol("(")?;
            let select = if self.take_symbol("*") {
                Select::CountAll
            } else {
                self.path()?;
                Select::Count
            };
            self.symbol(")")?;
            select
        } else if self.take_keyword("MIN") {
            Select::Min(self.in_parentheses()?)
        } else if self.take_keyword("MAX") {
            Select::Max(self.in_parentheses()?)
        } else {
            Select::Path(self.path()?)
        };
        let end = self.tokens[self.at - 1].at.end;
        let alias = match self.take_keyword("AS") {
            true => Some(self.name()?),
            false => None,
        };
        Ok(Column {
            select,
            text: self.text[start..end].to_owned(),
            alias,
        })
    }

    fn in_parentheses(&mut self) -> Result<Path, Refusal> {
        self.symbol("(")?;
        let path = self.path()?;
        self.symbol(")")?;
        Ok(path)
    }

    fn order(&mut self) -> Result<Order, Refusal> {
        let text = self.text[self.tokens[self.at].at.clone()].to_owned();
        let path = self.path()?;
        let descending = self.take_keyword("DESC") || self.take_keyword("DESCENDING");
        if !descending && !self.take_keyword("ASC") {
            self.take_keyword("ASCENDING");
        }
        Ok(Order {
            path,
            text,
            descending,
        })
    }

    fn or(&mut self) -> Result<Condition, Refusal> {
        let mut parts = vec![self.and()?];
        while self.take_keyword("OR") {
            parts.push(self.and()?);
        }
        Ok(one_or(parts, Condition::Or))
    }

    fn and(&mut self) -> Result<Condition, Refusal> {
        let mut parts = vec![self.test()?];
        while self.take_keyword("AND") {
            parts.push(self.test()?);
        }
        Ok(one_or(parts, Condition::And))
    }

    fn test(&mut self) -> Result<Condition, Refusal> {
        self.depth += 1;
        if self.depth > DEEPEST {
            return Err(self.unexpected());
        }
        let condition = if self.take_keyword("NOT") {
            Condition::Not(Box::new(self.test()?))
        } else if self.take_symbol("(") {
            let inner = self.or()?;
            self.symbol(")")?;
            inner
        } else {
            self.comparison()?
        };
        self.depth -= 1;
        Ok(condition)
    }

    fn comparison(&mut self) -> Result<Condition, Refusal> {
        let path = self.path()?;
        if matches!(path, Path::TimeText | Path::Composition) {
            return Err(unsupported("WHERE"));
        }
        if self.take_keyword("matches") {
            self.symbol("{")?;
            let operands = self.list(Self::operand)?;
            self.symbol("}")?;
            return Ok(Condition::Matches(path, operands));
        }
        let comparison = match self.peek() {
            Kind::Symbol("=") => Comparison::Equal,
            Kind::Symbol("!=" | "<>") => Comparison::NotEqual,
            Kind::Symbol("<") => Comparison::Less,
            Kind::Symbol("<=") => Comparison::AtMost,
            Kind::Symbol(">") => Comparison::Greater,
            Kind::Symbol(">=") => Comparison::AtLeast,
            _ => return Err(self.unexpected()),
        };
        let ordered = matches!(path, Path::Uid | Path::Time);
        if !ordered && !matches!(comparison, Comparison::Equal | Comparison::NotEqual) {
            return Err(unsupported("WHERE: operator"));
        }
        self.at += 1;
        Ok(Condition::Compare(path, comparison, self.operand()?))
    }

    fn operand(&mut self) -> Result<Operand, Refusal> {
        let operand = match self.peek() {
            Kind::Parameter(name) => Operand::Parameter(name.clone()),
            Kind::Text(text) => Operand::Text(text.clone()),
            Kind::Number(number) => Operand::Number(number.clone()),
            _ => return Err(self.unexpected()),
        };
        self.at += 1;
        Ok(operand)
    }

    fn path(&mut self) -> Result<Path, Refusal> {
        let Kind::Word(word) = self.peek() else {
            return Err(self.unexpected());
        };
        let (root, rest) = word.split_once('/').unwrap_or((word, ""));
        let of_ehr = self.names.ehr.as_deref() == Some(root);
        let of_version = self.names.version == root;
        let of_composition = self.names.composition == root;
        let path = match rest {
            "uid/value" if of_version || of_composition => Path::Uid,
            "commit_audit/time_committed" if of_version => Path::Time,
            "commit_audit/time_committed/value" if of_version => Path::TimeText,
            "commit_audit/change_type/value" if of_version => Path::ChangeType,
            "ehr_id/value" if of_ehr => Path::EhrId,
            "archetype_details/template_id/value" if of_composition => Path::TemplateId,
            "" if of_composition && !word.contains('/') => Path::Composition,
            _ => return Err(unsupported("SELECT or WHERE")),
        };
        self.at += 1;
        Ok(path)
    }

    fn list<T>(
        &mut self,
        item: impl Fn(&mut Self) -> Result<T, Refusal>,
    ) -> Result<Vec<T>, Refusal> {
        let mut items = vec![item(self)?];
        while self.take_symbol(",") {
            items.push(item(self)?);
        }
        Ok(items)
    }

    fn name(&mut self) -> Result<String, Refusal> {
        let Kind::Word(word) = self.peek() else {
            return Err(self.unexpected());
        };
        if word.contains(['/', '-', '.']) {
            return Err(self.unexpected());
        }
        let word = word.clone();
        self.at += 1;
        Ok(word)
    }

    fn number(&mut self) -> Result<u64, Refusal> {
        let Kind::Number(number) = self.peek() else {
            return Err(self.unexpected());
        };
        let number = number.parse().map_err(|_| self.unexpected())?;
        self.at += 1;
        Ok(number)
    }

    /// The next token. The list ends with [`Kind::End`], which nothing takes.
    fn peek(&self) -> &Kind {
        self.tokens.get(self.at).map_or(&Kind::End, |t| &t.kind)
    }

    fn is_keyword(&self, keyword: &str) -> bool {
        matches!(self.peek(), Kind::Word(word) if word.eq_ignore_ascii_case(keyword))
    }

    fn take_keyword(&mut self, keyword: &str) -> bool {
        let found = self.is_keyword(keyword);
        self.at += usize::from(found);
        found
    }

    fn keyword(&mut self, keyword: &str) -> Result<(), Refusal> {
        match self.take_keyword(keyword) {
            true => Ok(()),
            false => Err(self.unexpected()),
        }
    }

    fn take_symbol(&mut self, symbol: &str) -> bool {
        let found = matches!(self.peek(), Kind::Symbol(s) if *s == symbol);
        self.at += usize::from(found);
        found
    }

    fn symbol(&mut self, symbol: &str) -> Result<(), Refusal> {
        match self.take_symbol(symbol) {
            true => Ok(()),
            false => Err(self.unexpected()),
        }
    }

    fn unexpected(&self) -> Refusal {
        let at = self
            .tokens
            .get(self.at)
            .map_or(self.text.len(), |token| token.at.start);
        syntax(self.text, at)
    }
}

fn one_or(mut parts: Vec<Condition>, many: fn(Vec<Condition>) -> Condition) -> Condition {
    match parts.len() {
        1 => parts.remove(0),
        _ => many(parts),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic)]
    use super::*;

    const FROM: &str = "FROM EHR e CONTAINS VERSION v[LATEST_VERSION] CONTAINS COMPOSITION c";

    fn parse(select: &str, rest: &str) -> Result<Query, Refusal> {
        Query::parse(&format!("SELECT {select} {FROM} {rest}"))
    }

    #[test]
    fn the_page_query_is_understood() {
        let query = parse(
            "v/uid/value AS uid, v/commit_audit/time_committed/value, e/ehr_id/value, c",
            "WHERE c/archetype_details/template_id/value = $t AND v/commit_audit/time_committed >= $a \
             AND (v/commit_audit/time_committed > $a OR v/uid/value > $u) \
             ORDER BY v/commit_audit/time_committed, v/uid/value",
        )
        .unwrap();
        assert_eq!(query.columns[0].alias.as_deref(), Some("uid"));
        assert_eq!(query.columns[3].select, Select::Path(Path::Composition));
        assert_eq!(query.order.len(), 2);
        assert_eq!(query.parameters.len(), 4);
        let Some(Condition::And(parts)) = query.condition else {
            panic!("not a conjunction");
        };
        assert!(matches!(&parts[2], Condition::Or(either) if either.len() == 2));
    }

    #[test]
    fn and_binds_closer_than_or() {
        let query = parse(
            "c",
            "WHERE v/uid/value = 'a' OR v/uid/value = 'b' AND v/uid/value = 'c'",
        )
        .unwrap();
        let Some(Condition::Or(parts)) = query.condition else {
            panic!("not a disjunction");
        };
        assert!(matches!(parts[1], Condition::And(_)));
    }

    #[test]
    fn names_are_those_of_the_from_clause() {
        let query = Query::parse("select x from EHR z contains version y CONTAINS composition x");
        assert_eq!(
            query.unwrap().columns[0].select,
            Select::Path(Path::Composition)
        );
    }

    #[test]
    fn quotes_inside_a_text_are_escaped() {
        let query = parse("c", r"WHERE e/ehr_id/value = 'it\'s'").unwrap();
        assert_eq!(
            query.condition,
            Some(Condition::Compare(
                Path::EhrId,
                Comparison::Equal,
                Operand::Text("it's".into())
            ))
        );
    }

    #[test]
    fn what_is_outside_the_subset_is_refused() {
        for (select, rest) in [
            ("c", "GROUP BY c"),
            ("c", "WHERE c/archetype_details/template_id/value LIKE 'x*'"),
            ("c", "WHERE c/archetype_details/template_id/value > 'x'"),
            ("c", "WHERE v/commit_audit/time_committed/value > 'x'"),
            ("c", "ORDER BY v/commit_audit/time_committed"),
            (
                "v/commit_audit/time_committed/value",
                "ORDER BY v/commit_audit/time_committed/value",
            ),
            ("v", ""),
            ("c/content", ""),
            ("q/uid/value", ""),
            ("MIN(v/uid/value)", ""),
            ("", ""),
            ("c,", ""),
            ("c", "WHERE (v/uid/value = 'a'"),
            ("c", "WHERE v/uid/value = "),
            ("c", "WHERE v/uid/value = 'a"),
            ("c", "LIMIT x"),
            ("c", "§"),
        ] {
            let refusal = parse(select, rest).unwrap_err();
            assert_eq!(refusal.status, 400, "{select} {rest}");
        }
        assert!(Query::parse("").is_err());
        assert!(
            Query::parse(
                "SELECT c FROM EHR e CONTAINS VERSION v[ALL_VERSIONS] CONTAINS COMPOSITION c"
            )
            .is_err()
        );
    }

    #[test]
    fn deep_nesting_is_refused_and_not_followed() {
        let nested = format!(
            "WHERE {}v/uid/value = 'a'{}",
            "(".repeat(10_000),
            ")".repeat(10_000)
        );
        assert!(parse("c", &nested).is_err());
    }
}

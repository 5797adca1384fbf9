//! A Bicep file, computed: what each resource would be for given parameters.
//!
//! | step | what |
//! |---|---|
//! | [`File::parse`] | the text becomes declarations; a mistake is named with its line |
//! | [`File::deployed`] | parameters become values; what only Azure knows becomes `<its expression>` |
//!
//! It knows the part of the language that `infra/azure` uses, and ends with the name of what it does not know.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

/// What [`File::deployed`] takes for the answer of `uniqueString`: as long as Azure's, 13 characters.
pub const SUFFIX: &str = "x7k2m9q4wz3ta";

/// The declarations of a file.
#[derive(Debug, Default)]
pub struct File {
    parameters: BTreeMap<String, Parameter>,
    variables: BTreeMap<String, Expression>,
    /// Resources in the order of the file.
    pub resources: Vec<Resource>,
}

#[derive(Debug)]
struct Parameter {
    default: Option<Expression>,
    rules: BTreeMap<String, Vec<Expression>>,
}

/// A declared resource.
#[derive(Debug)]
pub struct Resource {
    /// The name it has in the file.
    pub symbol: String,
    /// Its type, such as `Microsoft.Web/sites`.
    pub kind: String,
    /// The version of the interface.
    pub version: String,
    body: Expression,
}

/// A resource as it would be.
#[derive(Debug)]
pub struct Declared {
    /// Its type, such as `Microsoft.Web/sites`.
    pub kind: String,
    /// Its name, without that of its parent.
    pub name: String,
    /// All of its body.
    pub body: Value,
}

#[derive(Debug, Clone)]
enum Expression {
    Value(Value),
    Text(Vec<Piece>),
    Name(String),
    Member(Box<Expression>, String),
    Call(String, Vec<Expression>),
    Choice(Box<[Expression; 3]>),
    More(Box<[Expression; 2]>),
    Object(Vec<(Vec<Piece>, Expression)>),
    Array(Vec<Expression>),
    Each(String, Box<[Expression; 2]>),
}

#[derive(Debug, Clone)]
enum Piece {
    Plain(String),
    Computed(Expression),
}

impl File {
    /// Reads declarations.
    ///
    /// # Errors
    /// What was expected, and the line.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut reader = Reader {
            text: text.chars().collect(),
            at: 0,
        };
        reader.file().map_err(|expected| {
            let read = &reader.text[..reader.at.min(reader.text.len())];
            let line = read.iter().filter(|c| **c == '\n').count() + 1;
            format!("line {line}: {expected}")
        })
    }

    /// The least and the greatest number that decorators such as `@minLength(…)` and `@maxLength(…)` give a parameter.
    pub fn bound(&self, parameter: &str, rule: &str) -> Option<u64> {
        match self.parameters.get(parameter)?.rules.get(rule)?.first()? {
            Expression::Value(value) => value.as_u64(),
            _ => None,
        }
    }

    /// Computes with these parameters, the others as they stand in the file.
    pub fn deployed(&self, parameters: &[(&str, Value)]) -> Deployed<'_> {
        let given = parameters
            .iter()
            .map(|(name, value)| ((*name).to_owned(), value.clone()));
        Deployed {
            file: self,
            given: given.collect(),
        }
    }
}

/// A file with parameters.
#[derive(Debug)]
pub struct Deployed<'a> {
    file: &'a File,
    given: BTreeMap<String, Value>,
}

impl Deployed<'_> {
    /// Everything that would be made.
    pub fn resources(&self) -> Vec<Declared> {
        let all = self.file.resources.iter().flat_map(|resource| {
            let bodies = match self.value(&resource.body, &[]) {
                Value::Array(bodies) => bodies,
                body => vec![body],
            };
            bodies.into_iter().map(|body| Declared {
                kind: resource.kind.clone(),
                name: text(&body["name"]),
                body,
            })
        });
        all.collect()
    }

    /// The value of a variable.
    pub fn variable(&self, name: &str) -> Value {
        self.value(&Expression::Name(name.to_owned()), &[])
    }

    fn value(&self, expression: &Expression, local: &[(String, Value)]) -> Value {
        let of = |expression| self.value(expression, local);
        match expression {
            Expression::Value(value) => value.clone(),
            Expression::Text(pieces) => json!(self.text(pieces, local)),
            Expression::Name(name) => self.named(name, local),
            Expression::Member(of_what, member) => self.member(of_what, member, local),
            Expression::Call(function, arguments) => {
                call(function, arguments.iter().map(of).collect())
            }
            Expression::Choice(parts) => match of(&parts[0]) {
                Value::Bool(true) => of(&parts[1]),
                _ => of(&parts[2]),
            },
            Expression::More(parts) => json!(of(&parts[0]).as_f64() > of(&parts[1]).as_f64()),
            Expression::Object(members) => {
                let members = members
                    .iter()
                    .map(|(key, value)| (self.text(key, local), of(value)));
                Value::Object(members.collect())
            }
            Expression::Array(items) => Value::Array(items.iter().map(of).collect()),
            Expression::Each(item, parts) => {
                let list = of(&parts[0]);
                let list = list.as_array().cloned().unwrap_or_default();
                let each = list.into_iter().map(|value| {
                    let known = [&[(item.clone(), value)], local].concat();
                    self.value(&parts[1], &known)
                });
                Value::Array(each.collect())
            }
        }
    }

    fn named(&self, name: &str, local: &[(String, Value)]) -> Value {
        if let Some((_, value)) = local.iter().find(|(known, _)| known == name) {
            return value.clone();
        }
        if let Some(value) = self.given.get(name) {
            return value.clone();
        }
        if let Some(parameter) = self.file.parameters.get(name) {
            let default = parameter.default.as_ref();
            return default.map_or_else(
                || json!(format!("<{name}>")),
                |default| self.value(default, &[]),
            );
        }
        match self.file.variables.get(name) {
            Some(variable) => self.value(variable, &[]),
            None if self.resource(name).is_some() => json!(format!("<{name}>")),
            None => panic!("`{name}` is declared nowhere"),
        }
    }

    fn member(&self, of: &Expression, member: &str, local: &[(String, Value)]) -> Value {
        if let (Expression::Name(symbol), "name") = (of, member)
            && let Some(resource) = self.resource(symbol)
        {
            return self.value(&resource.body, &[])["name"].clone();
        }
        match self.value(of, local) {
            Value::Object(members) => members.get(member).cloned().unwrap_or_default(),
            // Only Azure knows it.
            outer => json!(format!(
                "<{}.{member}>",
                text(&outer).trim_matches(['<', '>'])
            )),
        }
    }

    fn resource(&self, symbol: &str) -> Option<&Resource> {
        let mut resources = self.file.resources.iter();
        resources.find(|resource| resource.symbol == symbol)
    }

    fn text(&self, pieces: &[Piece], local: &[(String, Value)]) -> String {
        let pieces = pieces.iter().map(|piece| match piece {
            Piece::Plain(plain) => plain.clone(),
            Piece::Computed(expression) => text(&self.value(expression, local)),
        });
        pieces.collect()
    }
}

/// A value inside a text.
fn text(value: &Value) -> String {
    value
        .as_str()
        .map_or_else(|| value.to_string(), str::to_owned)
}

/// The functions of Bicep, as Microsoft's reference describes them.
fn call(function: &str, arguments: Vec<Value>) -> Value {
    let words: Vec<String> = arguments.iter().map(text).collect();
    let number = |at: usize| arguments[at].as_u64().unwrap_or_default() as usize;
    match function {
        "toUpper" => json!(words[0].to_uppercase()),
        "toLower" => json!(words[0].to_lowercase()),
        "length" => json!(words[0].chars().count()),
        "contains" => json!(words[0].contains(&words[1])),
        "empty" => json!(matches!(words[0].as_str(), "" | "{}" | "[]")),
        "string" => json!(words[0]),
        "take" => json!(words[0].chars().take(number(1)).collect::<String>()),
        "substring" => {
            let rest = words[0].chars().skip(number(1));
            json!(rest.take(number(2)).collect::<String>())
        }
        "range" => (number(0)..number(0) + number(1))
            .map(Value::from)
            .collect(),
        "join" => {
            let items = arguments[0].as_array().into_iter().flatten().map(text);
            json!(items.collect::<Vec<_>>().join(&words[1]))
        }
        "items" => {
            let members = arguments[0].as_object().into_iter().flatten();
            members
                .map(|(key, value)| json!({"key": key, "value": value}))
                .collect()
        }
        "union" => {
            let objects = arguments.into_iter().filter_map(|value| match value {
                Value::Object(members) => Some(members),
                _ => None,
            });
            Value::Object(objects.flatten().collect::<Map<_, _>>())
        }
        "json" => serde_json::from_str(&words[0]).unwrap_or_else(|e| panic!("{e}: {}", words[0])),
        "uniqueString" => json!(SUFFIX),
        "guid" => json!("00000000-0000-4000-8000-000000000000"),
        "resourceGroup" | "subscription" | "environment" | "subscriptionResourceId" => {
            json!(format!("<{function}>"))
        }
        _ => panic!("the function `{function}` is not known here"),
    }
}

struct Reader {
    text: Vec<char>,
    at: usize,
}

type Read<T> = Result<T, String>;

impl Reader {
    fn file(&mut self) -> Read<File> {
        let mut file = File::default();
        let mut rules = BTreeMap::new();
        while self.next().is_some() {
            if self.takes('@') {
                let rule = self.word()?;
                self.must('(')?;
                rules.insert(rule, self.list(')')?);
                continue;
            }
            let (declaration, symbol) = (self.word()?, self.word()?);
            match declaration.as_str() {
                "param" => {
                    self.word()?;
                    let default = match self.takes('=') {
                        true => Some(self.expression()?),
                        false => None,
                    };
                    let rules = std::mem::take(&mut rules);
                    let parameter = Parameter { default, rules };
                    file.parameters.insert(symbol, parameter);
                }
                "var" => {
                    self.must('=')?;
                    file.variables.insert(symbol, self.expression()?);
                }
                "resource" => {
                    let pieces = self.quoted()?;
                    let [Piece::Plain(interface)] = &pieces[..] else {
                        return Err("a type and its version are expected".to_owned());
                    };
                    let (kind, version) = interface.split_once('@').ok_or("`@` is expected")?;
                    let (kind, version) = (kind.to_owned(), version.to_owned());
                    self.must('=')?;
                    let body = self.expression()?;
                    file.resources.push(Resource {
                        symbol,
                        kind,
                        version,
                        body,
                    });
                }
                "output" => {
                    self.word()?;
                    self.must('=')?;
                    self.expression()?;
                }
                other => return Err(format!("`{other}` is no declaration")),
            }
        }
        Ok(file)
    }

    /// The next character that is neither white space nor in a comment.
    fn next(&mut self) -> Option<char> {
        loop {
            match (self.text.get(self.at)?, self.text.get(self.at + 1)) {
                ('/', Some('/')) => {
                    let rest = &self.text[self.at..];
                    self.at += rest.iter().position(|c| *c == '\n').unwrap_or(rest.len());
                }
                (space, _) if space.is_whitespace() => self.at += 1,
                (found, _) => return Some(*found),
            }
        }
    }

    fn takes(&mut self, wanted: char) -> bool {
        let found = self.next() == Some(wanted);
        self.at += usize::from(found);
        found
    }

    fn must(&mut self, wanted: char) -> Read<()> {
        match self.takes(wanted) {
            true => Ok(()),
            false => Err(format!("`{wanted}` is expected")),
        }
    }

    fn word(&mut self) -> Read<String> {
        self.next();
        let rest = self.text[self.at..].iter();
        let word: String = rest
            .take_while(|c| c.is_alphanumeric() || **c == '_')
            .collect();
        self.at += word.chars().count();
        match word.is_empty() {
            true => Err("a name is expected".to_owned()),
            false => Ok(word),
        }
    }

    fn expression(&mut self) -> Read<Expression> {
        let mut first = self.operand()?;
        if self.takes('>') {
            first = Expression::More(Box::new([first, self.operand()?]));
        }
        if !self.takes('?') {
            return Ok(first);
        }
        let then = self.expression()?;
        self.must(':')?;
        Ok(Expression::Choice(Box::new([
            first,
            then,
            self.expression()?,
        ])))
    }

    fn operand(&mut self) -> Read<Expression> {
        let mut operand = match self.next() {
            Some('\'') => Expression::Text(self.quoted()?),
            Some('{') => self.object()?,
            Some('[') => self.array()?,
            _ => self.plain()?,
        };
        while self.text.get(self.at) == Some(&'.') {
            self.at += 1;
            operand = Expression::Member(Box::new(operand), self.word()?);
        }
        Ok(operand)
    }

    fn plain(&mut self) -> Read<Expression> {
        let word = self.word()?;
        if let Ok(number) = word.parse::<u64>() {
            return Ok(Expression::Value(json!(number)));
        }
        if self.text.get(self.at) == Some(&'(') {
            self.at += 1;
            return Ok(Expression::Call(word, self.list(')')?));
        }
        Ok(match word.as_str() {
            "true" => Expression::Value(json!(true)),
            "false" => Expression::Value(json!(false)),
            "null" => Expression::Value(Value::Null),
            _ => Expression::Name(word),
        })
    }

    /// Expressions up to `end`, parted by commas or new lines.
    fn list(&mut self, end: char) -> Read<Vec<Expression>> {
        let mut all = Vec::new();
        while !self.takes(end) {
            all.push(self.expression()?);
            self.takes(',');
        }
        Ok(all)
    }

    fn array(&mut self) -> Read<Expression> {
        self.must('[')?;
        let start = self.at;
        if self.next() != Some(']') && self.word().is_ok_and(|word| word == "for") {
            let item = self.word()?;
            self.word()?;
            let list = self.expression()?;
            self.must(':')?;
            let body = self.expression()?;
            self.must(']')?;
            return Ok(Expression::Each(item, Box::new([list, body])));
        }
        self.at = start;
        Ok(Expression::Array(self.list(']')?))
    }

    fn object(&mut self) -> Read<Expression> {
        self.must('{')?;
        let mut members = Vec::new();
        while !self.takes('}') {
            let key = match self.next() {
                Some('\'') => self.quoted()?,
                _ => vec![Piece::Plain(self.word()?)],
            };
            self.must(':')?;
            members.push((key, self.expression()?));
            self.takes(',');
        }
        Ok(Expression::Object(members))
    }

    fn quoted(&mut self) -> Read<Vec<Piece>> {
        self.must('\'')?;
        let mut pieces = Vec::new();
        let mut plain = String::new();
        loop {
            let here = self.text.get(self.at).copied();
            let after = self.text.get(self.at + 1).copied();
            if matches!(here, None | Some('\n')) {
                return Err("`'` is expected".to_owned());
            }
            self.at += 1;
            match (here, after) {
                (Some('\''), _) => break,
                (Some('\\'), Some(escaped)) => {
                    self.at += 1;
                    plain.push(if escaped == 'n' { '\n' } else { escaped });
                }
                (Some('$'), Some('{')) => {
                    self.at += 1;
                    pieces.push(Piece::Plain(std::mem::take(&mut plain)));
                    pieces.push(Piece::Computed(self.expression()?));
                    self.must('}')?;
                }
                (other, _) => plain.extend(other),
            }
        }
        if !plain.is_empty() || pieces.is_empty() {
            pieces.push(Piece::Plain(plain));
        }
        Ok(pieces)
    }
}

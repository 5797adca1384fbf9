//! The parser: RFC 8259 to the letter, one pass, no recursion, so that no input can overflow
//! the stack. While a container is open, the link of its entry points to the container around
//! it, which saves a stack of its own.

use super::{ESCAPED, Entry, PLAIN};

/// How many arrays and objects may be open at once. Compositions stay far below 100.
pub const MAX_DEPTH: usize = 512;

/// Bytes that a value of a long text has on average, at least, with the commas and brackets around it; a name is a value too. Real
/// compositions have ten and more: what has fewer would need a tape several times as large as its text.
const BYTES_PER_VALUE: usize = 8;

/// Bytes of a text that is not long: its tape, twelve bytes for each value, is bearable whatever it holds. No page and no template
/// is longer, unless for a single composition.
const SHORT: usize = 4 << 20;

/// The link of the outermost container while it is open.
const NOTHING: u32 = u32::MAX;

/// Why a text is not JSON, and where. Never holds a piece of the text.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("the text is not JSON that Atlas can read: {kind} at byte {offset}")]
pub struct JsonError {
    /// What was found or missing.
    pub kind: JsonErrorKind,
    /// Byte of the text at which it was.
    pub offset: usize,
}

/// What is wrong with a text that is not JSON.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum JsonErrorKind {
    /// The text stops inside a value; most often the answer was cut off.
    #[error("it ends inside a value")]
    UnexpectedEnd,
    /// Neither a value nor white space.
    #[error("a value was expected")]
    ExpectedValue,
    /// A member has to start with its name in quotes.
    #[error("a member name in quotes was expected")]
    ExpectedName,
    /// A name without a colon behind it.
    #[error("a colon was expected")]
    ExpectedColon,
    /// Two values without a comma between them, or the wrong bracket.
    #[error("a comma or the end of the array or object was expected")]
    ExpectedCommaOrEnd,
    /// Leading zero, lone minus, point or exponent without digits.
    #[error("a malformed number")]
    InvalidNumber,
    /// A backslash and something that is no escape.
    #[error("an invalid escape")]
    InvalidEscape,
    /// A raw byte below 0x20 in a string.
    #[error("an unescaped control character in a string")]
    ControlCharacter,
    /// A second value, or rubbish, behind the first.
    #[error("there is something behind the value")]
    TrailingText,
    /// More than [`MAX_DEPTH`] arrays and objects in each other.
    #[error("more than {MAX_DEPTH} arrays and objects in each other")]
    TooDeep,
    /// An edit drops the whole value, which leaves no JSON.
    #[error("an edit drops the whole value")]
    RootDropped,
    /// An edit names a member's name; it is the member's value that is dropped or replaced.
    #[error("an edit names a member name instead of a value")]
    NameEdited,
    /// Hardly anything but numbers, brackets or empty texts, over megabytes.
    #[error("more values than a text of its length can hold without being made to fill memory")]
    TooDense,
    /// Offsets are 32 bits wide.
    #[error("the text is 4 GiB long or longer")]
    TooLong,
}

/// Answers whether there is white space inside the value, between the values that it is made of.
pub(super) fn parse(text: &str, entries: &mut Vec<Entry>) -> Result<bool, JsonError> {
    if u32::try_from(text.len()).is_err() {
        return Err(JsonError {
            kind: JsonErrorKind::TooLong,
            offset: text.len(),
        });
    }
    let most = match text.len() > SHORT {
        true => make_room(text.as_bytes(), entries),
        false => usize::MAX,
    };
    Parser {
        bytes: text.as_bytes(),
        at: 0,
        most,
        entries,
        open: NOTHING,
        inside: Inside::Nothing,
        depth: 0,
        has_white_space: false,
    }
    .run()
}

/// Makes room for the values of a long text at once: what grows by doubling is copied again and again. Answers how many entries the
/// tape may have: for a dense text a few, in which all that is wrong with its beginning is still found.
fn make_room(bytes: &[u8], entries: &mut Vec<Entry>) -> usize {
    const FEW: usize = 1 << 16;
    let (mut values, mut at) = (1, 0);
    while let Some(byte) = bytes.get(at) {
        at += 1;
        match byte {
            b'"' => at = behind_string(bytes, at),
            // Before each value but the first stands one of these.
            b',' | b':' | b'[' | b'{' => values += 1,
            _ => {}
        }
    }
    if values > bytes.len() / BYTES_PER_VALUE {
        return FEW;
    }
    entries.reserve_exact(values);
    usize::MAX
}

/// Behind the quote that ends a string, or at the end of the text.
fn behind_string(bytes: &[u8], mut at: usize) -> usize {
    loop {
        at = end_of_plain_run(bytes, at);
        match bytes.get(at) {
            Some(b'\\') => at += 2,
            Some(b'"') => return at + 1,
            // A control character is the parser's to refuse.
            Some(_) => at += 1,
            None => return at,
        }
    }
}

#[derive(Clone, Copy)]
enum Inside {
    Nothing,
    Array,
    Object,
}

struct Parser<'t> {
    bytes: &'t [u8],
    at: usize,
    /// Entries that the tape may have.
    most: usize,
    entries: &'t mut Vec<Entry>,
    /// The innermost open container.
    open: u32,
    inside: Inside,
    depth: usize,
    has_white_space: bool,
}

impl Parser<'_> {
    fn run(mut self) -> Result<bool, JsonError> {
        'value: loop {
            self.skip_white_space();
            match self.peek() {
                Some(b'"') => self.string()?,
                Some(b'{') => {
                    self.open(Inside::Object)?;
                    if self.peek() != Some(b'}') {
                        self.name()?;
                        continue 'value;
                    }
                    self.close();
                }
                Some(b'[') => {
                    self.open(Inside::Array)?;
                    if self.peek() != Some(b']') {
                        continue 'value;
                    }
                    self.close();
                }
                Some(b'-' | b'0'..=b'9') => self.number()?,
                Some(b't') => self.literal(b"true")?,
                Some(b'f') => self.literal(b"false")?,
                Some(b'n') => self.literal(b"null")?,
                _ => return Err(self.expected(JsonErrorKind::ExpectedValue)),
            }
            if self.entries.len() > self.most {
                return Err(self.error(JsonErrorKind::TooDense));
            }
            // A value is complete; what may follow is up to the container around it.
            loop {
                self.skip_white_space();
                match (self.inside, self.peek()) {
                    (Inside::Array, Some(b',')) => {
                        self.at += 1;
                        continue 'value;
                    }
                    (Inside::Object, Some(b',')) => {
                        self.at += 1;
                        self.skip_white_space();
                        self.name()?;
                        continue 'value;
                    }
                    (Inside::Array, Some(b']')) | (Inside::Object, Some(b'}')) => self.close(),
                    (Inside::Nothing, None) => return Ok(self.has_white_space),
                    (Inside::Nothing, Some(_)) => {
                        return Err(self.error(JsonErrorKind::TrailingText));
                    }
                    _ => return Err(self.expected(JsonErrorKind::ExpectedCommaOrEnd)),
                }
            }
        }
    }

    fn open(&mut self, inside: Inside) -> Result<(), JsonError> {
        if self.depth == MAX_DEPTH {
            return Err(self.error(JsonErrorKind::TooDeep));
        }
        self.depth += 1;
        let around = self.open;
        self.open = self.entries.len() as u32;
        self.inside = inside;
        self.push(self.at, self.at + 1, around);
        self.at += 1;
        self.skip_white_space();
        Ok(())
    }

    /// Closes the innermost container at the bracket the parser stands on.
    fn close(&mut self) {
        self.at += 1;
        self.depth -= 1;
        let after = self.entries.len() as u32;
        if let Some(entry) = self.entries.get_mut(self.open as usize) {
            entry.end = self.at as u32;
            self.open = std::mem::replace(&mut entry.link, after);
        }
        let around = self.entries.get(self.open as usize);
        self.inside = match around.and_then(|entry| self.bytes.get(entry.start as usize)) {
            Some(b'{') => Inside::Object,
            Some(_) => Inside::Array,
            None => Inside::Nothing,
        };
    }

    /// A member name and its colon.
    fn name(&mut self) -> Result<(), JsonError> {
        if self.peek() != Some(b'"') {
            return Err(self.expected(JsonErrorKind::ExpectedName));
        }
        self.string()?;
        self.skip_white_space();
        if self.peek() != Some(b':') {
            return Err(self.expected(JsonErrorKind::ExpectedColon));
        }
        self.at += 1;
        Ok(())
    }

    fn string(&mut self) -> Result<(), JsonError> {
        let start = self.at;
        let mut link = PLAIN;
        self.at += 1;
        loop {
            self.at = end_of_plain_run(self.bytes, self.at);
            match self.peek() {
                Some(b'"') => break,
                Some(b'\\') => {
                    link = ESCAPED;
                    self.escape()?;
                }
                _ => return Err(self.expected(JsonErrorKind::ControlCharacter)),
            }
        }
        self.at += 1;
        self.push(start, self.at, link);
        Ok(())
    }

    fn escape(&mut self) -> Result<(), JsonError> {
        self.at += 1;
        match self.peek() {
            Some(b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't') => self.at += 1,
            Some(b'u') => {
                for _ in 0..4 {
                    self.at += 1;
                    if !self.peek().is_some_and(|byte| byte.is_ascii_hexdigit()) {
                        return Err(self.expected(JsonErrorKind::InvalidEscape));
                    }
                }
                self.at += 1;
            }
            _ => return Err(self.expected(JsonErrorKind::InvalidEscape)),
        }
        Ok(())
    }

    fn number(&mut self) -> Result<(), JsonError> {
        let start = self.at;
        if self.peek() == Some(b'-') {
            self.at += 1;
        }
        if self.peek() == Some(b'0') {
            self.at += 1;
            if self.peek().is_some_and(|byte| byte.is_ascii_digit()) {
                return Err(self.error(JsonErrorKind::InvalidNumber));
            }
        } else {
            self.digits()?;
        }
        if self.peek() == Some(b'.') {
            self.at += 1;
            self.digits()?;
        }
        if let Some(b'e' | b'E') = self.peek() {
            self.at += 1;
            if let Some(b'+' | b'-') = self.peek() {
                self.at += 1;
            }
            self.digits()?;
        }
        self.push(start, self.at, PLAIN);
        Ok(())
    }

    /// One digit or more.
    fn digits(&mut self) -> Result<(), JsonError> {
        let start = self.at;
        while self.peek().is_some_and(|byte| byte.is_ascii_digit()) {
            self.at += 1;
        }
        if self.at == start {
            Err(self.expected(JsonErrorKind::InvalidNumber))
        } else {
            Ok(())
        }
    }

    fn literal(&mut self, word: &[u8]) -> Result<(), JsonError> {
        let start = self.at;
        for letter in word {
            if self.peek() != Some(*letter) {
                return Err(self.expected(JsonErrorKind::ExpectedValue));
            }
            self.at += 1;
        }
        self.push(start, self.at, PLAIN);
        Ok(())
    }

    // The casts are exact: offsets are below the length, which was checked, and a text has
    // fewer values than bytes.
    fn push(&mut self, start: usize, end: usize, link: u32) {
        self.entries.push(Entry {
            start: start as u32,
            end: end as u32,
            link,
        });
    }

    #[inline]
    fn peek(&self) -> Option<u8> {
        self.bytes.get(self.at).copied()
    }

    #[inline]
    fn skip_white_space(&mut self) {
        while let Some(b' ' | b'\n' | b'\r' | b'\t') = self.peek() {
            self.at += 1;
            self.has_white_space |= self.depth > 0;
        }
    }

    fn error(&self, kind: JsonErrorKind) -> JsonError {
        JsonError {
            kind,
            offset: self.at,
        }
    }

    /// The error of a byte that does not fit, or of there being none.
    fn expected(&self, kind: JsonErrorKind) -> JsonError {
        let ended = self.at >= self.bytes.len();
        self.error(if ended {
            JsonErrorKind::UnexpectedEnd
        } else {
            kind
        })
    }
}

/// The first byte from `at` on that a string cannot simply contain: a quote, a backslash or a
/// control character. Looks at eight bytes at a time; the text between quotes is most of a
/// composition.
#[inline]
fn end_of_plain_run(bytes: &[u8], mut at: usize) -> usize {
    while let Some(chunk) = bytes.get(at..).and_then(|rest| rest.first_chunk::<8>()) {
        let marks = special_bytes(u64::from_le_bytes(*chunk));
        if marks != 0 {
            return at + marks.trailing_zeros() as usize / 8;
        }
        at += 8;
    }
    while bytes
        .get(at)
        .is_some_and(|byte| !matches!(byte, b'"' | b'\\' | 0..0x20))
    {
        at += 1;
    }
    at
}

/// Marks the special bytes of a word in their highest bits. Subtraction can carry a mark into
/// bytes above a special one, never below it, so the lowest mark is always right.
fn special_bytes(word: u64) -> u64 {
    const EACH: u64 = 0x0101_0101_0101_0101;
    let zero_bytes = |word: u64| word.wrapping_sub(EACH) & !word;
    let quotes = zero_bytes(word ^ (EACH * u64::from(b'"')));
    let backslashes = zero_bytes(word ^ (EACH * u64::from(b'\\')));
    let controls = word.wrapping_sub(EACH * 0x20) & !word;
    (quotes | backslashes | controls) & (EACH * 0x80)
}

//! The keys of one value, by its class.

use super::rm::RmType;
use super::value::{Data, Value, double};
use super::walk::{Out, Sink, push_number};
use crate::json::{Kind, Node};
use crate::time;
use base64::Engine as _;
use std::borrow::Cow;

/// What the template says about the form of a value.
#[derive(Clone, Copy, Default, Debug, PartialEq)]
pub(super) struct Form {
    /// A plain text goes to `|other`, as the template lists codes.
    pub(super) other: bool,
    /// A DV_PARSABLE goes to `|value`.
    pub(super) wf_definition: bool,
    /// No post rules follow, so that a date, a time or a date-time is as Java itself prints it.
    pub(super) java_time: bool,
}

/// The members of an object, in one pass. Of two with the same name the last one counts.
pub(super) fn fields<'a, const N: usize>(
    object: Node<'a>,
    names: [&str; N],
) -> [Option<Node<'a>>; N] {
    let mut found = [None; N];
    for (key, value) in object.members() {
        if let Some(slot) = place(key, &names).and_then(|place| found.get_mut(place)) {
            *slot = (!value.is_null()).then_some(value);
        }
    }
    found
}

/// Which of the names a key is.
pub(super) fn place<T: AsRef<str>>(key: Node<'_>, names: &[T]) -> Option<usize> {
    if key.has_escapes() {
        return names.iter().position(|name| key.is_str(name.as_ref()));
    }
    let key = key.raw_str()?;
    names.iter().position(|name| name.as_ref() == key)
}

/// What an object says its class is.
pub(super) fn stated_type<'a>(object: Node<'a>) -> Option<Cow<'a, str>> {
    object.get("_type")?.as_str()
}

/// The class of an object, where the reference model leaves no choice if it does not say.
pub(super) fn class(object: Node<'_>, otherwise: RmType) -> RmType {
    stated_type(object).map_or(otherwise, |name| RmType::from_name(&name))
}

/// Writes the keys of a value at the present path.
pub(super) fn value<S: Sink>(out: &mut Out<'_, S>, class: RmType, object: Node<'_>, form: Form) {
    if object.kind() != Kind::Object {
        return bare(out, object);
    }
    match class {
        RmType::DvText => {
            let [value, formatting] = fields(object, ["value", "formatting"]);
            out.text(if form.other { "other" } else { "" }, value);
            out.text("formatting", formatting);
        }
        RmType::DvCodedText => coded_text(out, object),
        RmType::CodePhrase => code_phrase(out, object, true),
        RmType::DvQuantity => {
            let names = [
                "magnitude",
                "precision",
                "units",
                "units_system",
                "units_display_name",
            ];
            let [magnitude, precision, units, system, display_name] = fields(object, names);
            out.put("magnitude", magnitude.and_then(Value::double));
            out.put("precision", precision.and_then(Value::integer));
            out.text("unit", units);
            out.text("units_system", system);
            out.text("units_display_name", display_name);
        }
        RmType::DvCount => out.put("", object.get("magnitude").and_then(Value::integer)),
        RmType::DvOrdinal => {
            let [symbol, value] = fields(object, ["symbol", "value"]);
            if let Some(symbol) = symbol {
                out.text("code", symbol.at(&["defining_code", "code_string"]));
                out.text("value", symbol.get("value"));
            }
            out.put("ordinal", value.and_then(Value::integer));
        }
        RmType::DvProportion => proportion(out, object),
        RmType::DvBoolean => out.put("", object.get("value").and_then(Value::bool)),
        RmType::DvDate | RmType::DvTime | RmType::DvDateTime if form.java_time => {
            java_time(out, class, "", object.get("value"))
        }
        RmType::DvDate | RmType::DvTime | RmType::DvDateTime => {
            time_text(out, class, "", object.get("value"))
        }
        RmType::DvDuration | RmType::DvUri | RmType::DvEhrUri => out.text("", object.get("value")),
        RmType::DvIdentifier => identifier(out, object),
        RmType::DvParsable => {
            let [value, formalism] = fields(object, ["value", "formalism"]);
            out.text(if form.wf_definition { "value" } else { "" }, value);
            out.text("formalism", formalism);
        }
        RmType::DvMultimedia => multimedia(out, object),
        RmType::PartySelf => party_ref(out, object.get("external_ref")),
        RmType::PartyIdentified => party_identified(out, object),
        RmType::PartyRelated => {
            party_identified(out, object);
            relationship(out, object);
        }
        RmType::Participation => participation(out, object),
        RmType::FeederAudit => feeder_audit(out, object),
        RmType::TermMapping => {
            let [r#match, target, purpose] = fields(object, ["match", "target", "purpose"]);
            out.text("match", r#match);
            if let Some(target) = target {
                out.below("target", |out| code_phrase(out, target, true));
            }
            if let Some(purpose) = purpose {
                out.below("purpose", |out| coded_text(out, purpose));
            }
        }
        _ => out.put(
            "",
            Some(Value {
                data: Data::Json(object),
                source: Some(object),
            }),
        ),
    }
}

/// An attribute that is no object: STRING, BOOLEAN, LONG.
fn bare<S: Sink>(out: &mut Out<'_, S>, value: Node<'_>) {
    out.put(
        "",
        match value.kind() {
            Kind::Bool => Value::bool(value),
            Kind::Number => value.number().map(|text| Value {
                data: Data::Number(text),
                source: Some(value),
            }),
            _ => Value::text(value),
        },
    );
}

fn coded_text<S: Sink>(out: &mut Out<'_, S>, object: Node<'_>) {
    let [code, value, formatting] = fields(object, ["defining_code", "value", "formatting"]);
    if let Some(code) = code {
        code_phrase(out, code, false);
    }
    out.text("value", value);
    out.text("formatting", formatting);
}

fn code_phrase<S: Sink>(out: &mut Out<'_, S>, object: Node<'_>, preferred_term: bool) {
    let [code, terminology, term] =
        fields(object, ["code_string", "terminology_id", "preferred_term"]);
    out.text("code", code);
    out.text("terminology", terminology.and_then(|id| id.get("value")));
    if preferred_term {
        out.text("preferred_term", term);
    }
}

fn proportion<S: Sink>(out: &mut Out<'_, S>, object: Node<'_>) {
    let [numerator, denominator, kind, precision] =
        fields(object, ["numerator", "denominator", "type", "precision"]);
    out.put("numerator", numerator.and_then(Value::double));
    out.put("denominator", denominator.and_then(Value::double));
    out.put("type", kind.and_then(Value::integer));
    out.put("precision", precision.and_then(Value::integer));
    let number = |node: Option<Node<'_>>| node.and_then(double);
    let quotient = match (number(numerator), number(denominator)) {
        (None, _) => 0.0,
        // Quirk Q13: Java's greatest double stands for what division cannot give.
        (Some(_), None | Some(0.0)) => f64::MAX,
        (Some(numerator), Some(denominator)) => numerator / denominator,
    };
    out.put("", Some(Value::added(Data::Double(quotient))));
}

/// Writes a date, a time or a date-time in extended form, as EHRbase stores them. Text that is
/// none of them is passed on as it is: it is not ours to drop.
pub(super) fn time_text<S: Sink>(
    out: &mut Out<'_, S>,
    class: RmType,
    suffix: &str,
    value: Option<Node<'_>>,
) {
    let Some(value) = value else { return };
    let Some(own) = value.as_str() else {
        return out.text(suffix, Some(value));
    };
    let extended = match class {
        RmType::DvDate => time::Date::parse(&own).map(|date| date.to_extended()),
        RmType::DvTime => time::Time::parse(&own).map(|time| time.to_extended()),
        _ => time::DateTime::parse(&own).map(|time| time.to_extended()),
    };
    match extended {
        Ok(Cow::Owned(text)) => out.put(
            suffix,
            Some(Value {
                data: Data::Text(&text),
                source: Some(value),
            }),
        ),
        Ok(Cow::Borrowed(_)) | Err(_) => out.text(suffix, Some(value)),
    }
}

/// Writes a date, a time or a date-time as Java prints it, which is what the places without post
/// rules show (limits of intervals and ranges, what the context holds, audits): a time without the
/// seconds if they are zero, with 3, 6 or 9 digits of a fraction; a lone year without zeros before it.
pub(super) fn java_time<S: Sink>(
    out: &mut Out<'_, S>,
    class: RmType,
    suffix: &str,
    value: Option<Node<'_>>,
) {
    let Some(node) = value else { return };
    let Some(own) = node.as_str() else {
        return out.text(suffix, value);
    };
    let printed = match class {
        RmType::DvTime => time::Time::parse(&own).map(|time| time.to_java()).ok(),
        _ => own
            .bytes()
            .all(|byte| byte.is_ascii_digit())
            .then(|| own.parse::<u16>().ok().map(|year| year.to_string()))
            .flatten(),
    };
    let Some(printed) = printed else {
        return time_text(out, class, suffix, value);
    };
    out.put(
        suffix,
        Some(Value {
            data: Data::Text(&printed),
            source: value,
        }),
    );
}

fn identifier<S: Sink>(out: &mut Out<'_, S>, object: Node<'_>) {
    let [id, issuer, assigner, kind] = fields(object, ["id", "issuer", "assigner", "type"]);
    out.text("id", id);
    out.text("issuer", issuer);
    out.text("assigner", assigner);
    out.text("type", kind);
}

fn multimedia<S: Sink>(out: &mut Out<'_, S>, object: Node<'_>) {
    let names = [
        "uri",
        "media_type",
        "compression_algorithm",
        "integrity_check_algorithm",
        "integrity_check",
        "data",
        "size",
        "alternate_text",
    ];
    let [
        uri,
        media_type,
        compression,
        algorithm,
        check,
        data,
        size,
        alternate_text,
    ] = fields(object, names);
    out.text("", uri.and_then(|uri| uri.get("value")));
    out.text("mediatype", media_type.and_then(code));
    out.text("compression_algorithm", compression.and_then(code));
    out.text("integrity_check_algorithm", algorithm.and_then(code));
    if let Some(check) = check {
        integrity_check(out, check);
    }
    if let Some(data) = data {
        base64_data(out, data);
    }
    out.put("size", size.and_then(Value::integer));
    out.text("alternatetext", alternate_text);
}

fn code(phrase: Node<'_>) -> Option<Node<'_>> {
    phrase.get("code_string")
}

/// The check's bytes as text: EHRbase decodes the base64 that canonical JSON has.
fn integrity_check<S: Sink>(out: &mut Out<'_, S>, check: Node<'_>) {
    let Some(text) = check.as_str() else { return };
    match base64::engine::general_purpose::STANDARD.decode(text.as_bytes()) {
        Ok(bytes) => {
            let text = String::from_utf8_lossy(&bytes);
            out.put(
                "integrity_check",
                Some(Value {
                    data: Data::Text(&text),
                    source: Some(check),
                }),
            );
        }
        Err(_) => out.text("integrity_check", Some(check)),
    }
}

/// Base64 on one line.
fn base64_data<S: Sink>(out: &mut Out<'_, S>, data: Node<'_>) {
    if !data.has_escapes() {
        return out.text("data", Some(data));
    }
    let Some(text) = data.as_str() else { return };
    let line: String = text
        .chars()
        .filter(|char| !matches!(char, '\r' | '\n'))
        .collect();
    out.put(
        "data",
        Some(Value {
            data: Data::Text(&line),
            source: Some(data),
        }),
    );
}

/// The members of a reference to a party: `|id`, `|id_namespace`, `|id_scheme`.
fn party_ref<S: Sink>(out: &mut Out<'_, S>, reference: Option<Node<'_>>) {
    let Some(reference) = reference else { return };
    let [id, namespace] = fields(reference, ["id", "namespace"]);
    out.text("id", id.and_then(|id| id.get("value")));
    out.text("id_namespace", namespace);
    out.text("id_scheme", generic_scheme(id));
}

/// The scheme of an id, which only GENERIC_ID has.
pub(super) fn generic_scheme(id: Option<Node<'_>>) -> Option<Node<'_>> {
    let [kind, scheme] = fields(id?, ["_type", "scheme"]);
    scheme.filter(|_| kind.is_some_and(|kind| kind.is_str("GENERIC_ID")))
}

fn party_identified<S: Sink>(out: &mut Out<'_, S>, object: Node<'_>) {
    let [name, reference, identifiers] = fields(object, ["name", "external_ref", "identifiers"]);
    out.text("name", name);
    party_ref(out, reference);
    if let Some(identifiers) = identifiers {
        out.each("_identifier", identifiers, identifier);
    }
}

fn relationship<S: Sink>(out: &mut Out<'_, S>, object: Node<'_>) {
    if let Some(relationship) = object.get("relationship").filter(|value| !value.is_null()) {
        let class = class(relationship, RmType::DvCodedText);
        out.below("relationship", |out| {
            value(out, class, relationship, Form::default())
        });
    }
}

fn participation<S: Sink>(out: &mut Out<'_, S>, object: Node<'_>) {
    let [function, mode, performer] = fields(object, ["function", "mode", "performer"]);
    out.text("function", function.and_then(|text| text.get("value")));
    out.text("mode", mode.and_then(|text| text.get("value")));
    let Some(performer) = performer else { return };
    let kind = class(performer, RmType::PartyIdentified);
    party_ref(out, performer.get("external_ref"));
    if kind.is(RmType::PartyIdentified) {
        let [name, identifiers] = fields(performer, ["name", "identifiers"]);
        out.text("name", name);
        for (index, item) in identifiers
            .into_iter()
            .flat_map(|list| list.items())
            .enumerate()
        {
            let [id, issuer, assigner, kind] = fields(item, ["id", "issuer", "assigner", "type"]);
            numbered(out, "identifiers_id:", index, id);
            numbered(out, "identifiers_issuer:", index, issuer);
            numbered(out, "identifiers_assigner:", index, assigner);
            numbered(out, "identifiers_type:", index, kind);
        }
    }
    if kind == RmType::PartyRelated {
        relationship(out, performer);
    }
}

/// A suffix with an index, which only participations have (quirk Q16).
fn numbered<S: Sink>(out: &mut Out<'_, S>, suffix: &str, index: usize, value: Option<Node<'_>>) {
    if value.is_none() {
        return;
    }
    let mut text = std::mem::take(out.text);
    text.clear();
    text.push_str(suffix);
    push_number(&mut text, index);
    out.text(&text, value);
    *out.text = text;
}

fn feeder_audit<S: Sink>(out: &mut Out<'_, S>, object: Node<'_>) {
    let names = [
        "original_content",
        "feeder_system_item_ids",
        "originating_system_item_ids",
        "originating_system_audit",
        "feeder_system_audit",
    ];
    let [content, feeder_ids, originating_ids, originating, feeder] = fields(object, names);
    if let Some(content) = content {
        match class(content, RmType::Other) {
            RmType::DvParsable => {
                out.below("original_content", |out| {
                    value(out, RmType::DvParsable, content, Form::default())
                });
            }
            RmType::DvMultimedia => out.below("original_content_multimedia", |out| {
                multimedia(out, content)
            }),
            _ => {}
        }
    }
    if let Some(ids) = feeder_ids {
        out.each("feeder_system_item_id", ids, identifier);
    }
    if let Some(ids) = originating_ids {
        out.each("originating_system_item_id", ids, identifier);
    }
    if let Some(details) = originating {
        out.below("originating_system_audit", |out| {
            feeder_audit_details(out, details)
        });
    }
    if let Some(details) = feeder {
        out.below("feeder_system_audit", |out| {
            feeder_audit_details(out, details)
        });
    }
}

fn feeder_audit_details<S: Sink>(out: &mut Out<'_, S>, object: Node<'_>) {
    let names = [
        "time",
        "system_id",
        "version_id",
        "location",
        "provider",
        "subject",
    ];
    let [time, system, version, location, provider, subject] = fields(object, names);
    java_time(
        out,
        RmType::DvDateTime,
        "time",
        time.and_then(|time| time.get("value")),
    );
    out.text("system_id", system);
    out.text("version_id", version);
    for (name, party) in [
        ("location", location),
        ("provider", provider),
        ("subject", subject),
    ] {
        let Some(party) = party else { continue };
        let class = class(party, RmType::PartyIdentified);
        out.below(name, |out| {
            if name == "subject" && class == RmType::PartySelf {
                out.added("_type", "PARTY_SELF");
            }
            value(out, class, party, Form::default());
        });
    }
}

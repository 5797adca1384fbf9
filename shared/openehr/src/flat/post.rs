//! The keys that an object adds to its own: what the template does not mention, by the object's
//! class, the superclass's first.

use super::leaf::{self, Form, class, fields, generic_scheme, java_time};
use super::plan::PlanNode;
use super::rm::RmType;
use super::value::{Data, Value};
use super::walk::{Key, Out, Sink};
use crate::json::Node;
use crate::time::DateTime;

/// The place of the COMPOSITION in a plan.
const ROOT: usize = 0;

/// Thumbnails of thumbnails end here; what lies deeper is lost.
const MAX_THUMBNAILS: usize = 16;

/// Runs the post rules of a template node's object.
pub(super) fn emit<S: Sink>(
    out: &mut Out<'_, S>,
    class: RmType,
    object: Node<'_>,
    node: &PlanNode,
) {
    if !class.is(RmType::Locatable) {
        return value(out, class, object);
    }
    if node.locatable_post {
        locatable(out, object, node);
    }
    if class.is(RmType::Entry) {
        entry(out, object);
    }
    if class.is(RmType::CareEntry)
        && let Some(guideline) = object.get("guideline_id")
    {
        out.below("_guideline_id", |out| reference(out, guideline));
    }
    match class {
        RmType::Action => {
            let [details] = fields(object, ["instruction_details"]);
            if let Some(details) = details {
                out.below("_instruction_details", |out| {
                    instruction_details(out, details)
                });
            }
        }
        RmType::Instruction => {
            let [definition] = fields(object, ["wf_definition"]);
            if let Some(definition) = definition {
                out.below("_wf_definition", |out| {
                    let form = Form {
                        wf_definition: true,
                        ..Form::default()
                    };
                    leaf::value(out, RmType::DvParsable, definition, form);
                    value(out, RmType::DvParsable, definition);
                });
            }
        }
        RmType::Composition => composition(out, object),
        RmType::History => history(out, object),
        RmType::IntervalEvent => out.put(
            "sample_count",
            object.get("sample_count").and_then(Value::integer),
        ),
        RmType::Element => {
            let [flavour, reason] = fields(object, ["null_flavour", "null_reason"]);
            if let Some(flavour) = flavour {
                out.below("_null_flavour", |out| {
                    with_post(out, RmType::DvCodedText, flavour)
                });
            }
            if let Some(reason) = reason {
                out.below("_null_reason", |out| with_post(out, RmType::DvText, reason));
            }
        }
        _ => {}
    }
}

/// Runs the post rules of an object that is no LOCATABLE.
fn value<S: Sink>(out: &mut Out<'_, S>, class: RmType, object: Node<'_>) {
    value_at(out, class, object, 0);
}

fn value_at<S: Sink>(out: &mut Out<'_, S>, class: RmType, object: Node<'_>, depth: usize) {
    if class.is(RmType::DvText) {
        text(out, object);
    } else if class.is(RmType::DvOrdered) {
        ordered(out, class, object);
    } else if class == RmType::DvInterval {
        interval_flags(out, object);
    } else if class.is(RmType::DvEncapsulated) {
        encapsulated(out, class, object, depth);
    } else if class == RmType::EventContext {
        event_context(out, object);
    } else if class == RmType::IsmTransition
        && let Some(reasons) = object.get("reason")
    {
        out.each("_reason", reasons, |out, reason| {
            with_post(out, RmType::DvText, reason)
        });
    }
}

/// A value with its keys and with those of its post rules.
fn with_post<S: Sink>(out: &mut Out<'_, S>, otherwise: RmType, object: Node<'_>) {
    let class = class(object, otherwise);
    leaf::value(out, class, object, Form::default());
    value(out, class, object);
}

fn locatable<S: Sink>(out: &mut Out<'_, S>, object: Node<'_>, node: &PlanNode) {
    let [name, uid, links, feeder_audit] = fields(object, ["name", "uid", "links", "feeder_audit"]);
    let own_uid = uid.and_then(|uid| uid.get("value"));
    let known_uid = out.version_uid.filter(|_| out.node.index() == ROOT);
    out.below("_uid", |out| match known_uid {
        Some(known) => {
            let value = Value {
                data: Data::Text(known),
                source: own_uid,
            };
            out.put("", Some(value));
        }
        None => out.text("", own_uid),
    });
    if let Some(links) = links {
        out.each("_link", links, |out, link| {
            for (suffix, attribute) in [
                ("meaning", "meaning"),
                ("type", "type"),
                ("target", "target"),
            ] {
                out.text(suffix, link.at(&[attribute, "value"]));
            }
        });
    }
    if let Some(audit) = feeder_audit {
        out.below("_feeder_audit", |out| {
            leaf::value(out, RmType::FeederAudit, audit, Form::default())
        });
    }
    if let Some(name) = name
        && name
            .get("value")
            .is_some_and(|value| !value.is_null() && !value.is_str(&node.name))
    {
        out.below("_name", |out| with_post(out, RmType::DvText, name));
    }
}

fn entry<S: Sink>(out: &mut Out<'_, S>, object: Node<'_>) {
    // Quirk Q3: whatever the entry says.
    out.below("encoding", |out| {
        out.added("code", "UTF-8");
        out.added("terminology", "IANA_character-sets");
    });
    let [provider, participations, workflow] =
        fields(object, ["provider", "other_participations", "workflow_id"]);
    if let Some(provider) = provider {
        out.below("_provider", |out| {
            with_post(out, RmType::PartyIdentified, provider)
        });
    }
    if let Some(participations) = participations {
        out.each(
            "_other_participation",
            participations,
            |out, participation| {
                leaf::value(out, RmType::Participation, participation, Form::default());
            },
        );
    }
    if let Some(workflow) = workflow {
        out.below("_work_flow_id", |out| reference(out, workflow));
    }
}

/// An OBJECT_REF: `|id`, `|id_scheme`, `|namespace`, `|type`.
fn reference<S: Sink>(out: &mut Out<'_, S>, object: Node<'_>) {
    let [id, namespace, kind] = fields(object, ["id", "namespace", "type"]);
    out.text("id", id.and_then(|id| id.get("value")));
    out.text("id_scheme", generic_scheme(id));
    out.text("namespace", namespace);
    out.text("type", kind);
}

fn instruction_details<S: Sink>(out: &mut Out<'_, S>, details: Node<'_>) {
    let [activity, instruction] = fields(details, ["activity_id", "instruction_id"]);
    out.text("activity_id", activity);
    if let Some(instruction) = instruction {
        let [id, path] = fields(instruction, ["id", "path"]);
        out.text("composition_uid", id.and_then(|id| id.get("value")));
        out.text("path", path);
    }
}

/// The one key that does not begin with the root's id.
fn composition<S: Sink>(out: &mut Out<'_, S>, object: Node<'_>) {
    let is_self = object
        .at(&["composer", "_type"])
        .is_some_and(|class| class.is_str("PARTY_SELF"));
    if is_self {
        let key = Key {
            path: "ctx/composer_self",
            suffix: "",
            node: out.node,
            own: false,
        };
        out.sink.emit(key, Value::added(Data::Bool(true)));
    }
}

/// The origin, unless it says no more than the earliest event does (quirk Q15: to the second).
fn history<S: Sink>(out: &mut Out<'_, S>, object: Node<'_>) {
    let [origin, events] = fields(object, ["origin", "events"]);
    let Some(origin) = origin
        .and_then(|origin| origin.get("value"))
        .filter(|value| !value.is_null())
    else {
        return;
    };
    // What a partial date-time leaves out counts as its first: 2026 is the midnight that began it.
    let second = |value: Node<'_>| {
        let first = DateTime::parse(&value.as_str()?).ok()?.earliest();
        Some(first.ok()?.as_seconds())
    };
    let times = events.into_iter().flat_map(|events| events.items());
    let first = times
        .filter_map(|event| second(event.at(&["time", "value"])?))
        .min();
    if first.is_none() || second(origin) != first {
        out.below("history_origin", |out| {
            java_time(out, RmType::DvDateTime, "", Some(origin))
        });
    }
}

fn event_context<S: Sink>(out: &mut Out<'_, S>, object: Node<'_>) {
    let [end_time, location, facility, participations] = fields(
        object,
        [
            "end_time",
            "location",
            "health_care_facility",
            "participations",
        ],
    );
    if let Some(end_time) = end_time {
        out.below("_end_time", |out| {
            java_time(out, RmType::DvDateTime, "", end_time.get("value"))
        });
    }
    if let Some(location) = location {
        out.below("_location", |out| out.text("", Some(location)));
    }
    if let Some(facility) = facility {
        out.below("_health_care_facility", |out| {
            with_post(out, RmType::PartyIdentified, facility)
        });
    }
    if let Some(participations) = participations {
        out.each("_participation", participations, |out, participation| {
            leaf::value(out, RmType::Participation, participation, Form::default());
        });
    }
}

fn text<S: Sink>(out: &mut Out<'_, S>, object: Node<'_>) {
    let [mappings, language, encoding] = fields(object, ["mappings", "language", "encoding"]);
    if let Some(mappings) = mappings {
        out.each("_mapping", mappings, |out, mapping| {
            leaf::value(out, RmType::TermMapping, mapping, Form::default());
        });
    }
    code_phrase(out, "_language", language);
    code_phrase(out, "_encoding", encoding);
}

fn code_phrase<S: Sink>(out: &mut Out<'_, S>, name: &str, phrase: Option<Node<'_>>) {
    if let Some(phrase) = phrase {
        out.below(name, |out| {
            leaf::value(out, RmType::CodePhrase, phrase, Form::default())
        });
    }
}

fn ordered<S: Sink>(out: &mut Out<'_, S>, class: RmType, object: Node<'_>) {
    let names = [
        "normal_range",
        "other_reference_ranges",
        "normal_status",
        "magnitude_status",
        "accuracy",
        "accuracy_is_percent",
    ];
    let [
        normal,
        others,
        status,
        magnitude_status,
        accuracy,
        is_percent,
    ] = fields(object, names);
    if let Some(normal) = normal {
        out.below("_normal_range", |out| range(out, class, normal));
    }
    if let Some(others) = others {
        out.each("_other_reference_ranges", others, |out, other| {
            let [meaning, limits] = fields(other, ["meaning", "range"]);
            if let Some(meaning) = meaning {
                out.below("meaning", |out| with_post(out, RmType::DvText, meaning));
            }
            if let Some(limits) = limits {
                range(out, class, limits);
            }
        });
    }
    out.text(
        "normal_status",
        status.and_then(|status| status.get("code_string")),
    );
    if class.is(RmType::DvQuantified) {
        out.text("magnitude_status", magnitude_status);
    }
    if class.is(RmType::DvAmount) {
        out.put("accuracy", accuracy.and_then(Value::double));
        out.put("accuracy_is_percent", is_percent.and_then(Value::bool));
    } else if let Some(accuracy) = accuracy.filter(|_| class.is(RmType::DvTemporal)) {
        out.below("_accuracy", |out| {
            with_post(out, RmType::DvDuration, accuracy)
        });
    }
}

/// A range around a value. Its limits have keys of their own but no post rules (quirk Q12).
fn range<S: Sink>(out: &mut Out<'_, S>, limit: RmType, object: Node<'_>) {
    let [lower, upper] = fields(object, ["lower", "upper"]);
    for (name, found) in [("lower", lower), ("upper", upper)] {
        if let Some(found) = found {
            let form = Form {
                java_time: true,
                ..Form::default()
            };
            out.below(name, |out| {
                leaf::value(out, class(found, limit), found, form)
            });
        }
    }
    interval_flags(out, object);
}

/// Only what differs from the usual is written.
fn interval_flags<S: Sink>(out: &mut Out<'_, S>, object: Node<'_>) {
    let flags = [
        "upper_unbounded",
        "lower_unbounded",
        "lower_included",
        "upper_included",
    ];
    for (flag, found) in flags.into_iter().zip(fields(object, flags)) {
        let usual = flag.ends_with("included");
        if let Some(found) = found.filter(|found| found.as_bool() == Some(!usual)) {
            out.put(flag, Value::bool(found));
        }
    }
}

fn encapsulated<S: Sink>(out: &mut Out<'_, S>, class: RmType, object: Node<'_>, depth: usize) {
    let [language, charset, thumbnail] = fields(object, ["language", "charset", "thumbnail"]);
    code_phrase(out, "_language", language);
    code_phrase(out, "_charset", charset);
    if let Some(thumbnail) =
        thumbnail.filter(|_| class == RmType::DvMultimedia && depth < MAX_THUMBNAILS)
    {
        out.below("_thumbnail", |out| {
            leaf::value(out, RmType::DvMultimedia, thumbnail, Form::default());
            value_at(out, RmType::DvMultimedia, thumbnail, depth + 1);
        });
    }
}

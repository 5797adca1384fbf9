//! The REST interface, and what happens to every answer on its way out.

use std::{
    io,
    io::Write as _,
    sync::{Arc, atomic::Ordering::Relaxed},
};

use axum::{
    Json, Router,
    body::{Body, Bytes},
    extract::{DefaultBodyLimit, Path, Request, State},
    http::{HeaderMap, HeaderValue, StatusCode, header},
    middleware::{Next, from_fn_with_state},
    response::{IntoResponse, Response},
    routing::{get, post, put},
};
use flate2::{Compression, write::GzEncoder};
use futures::{StreamExt as _, stream};
use jiff::{Timestamp, fmt::rfc2822::DateTimePrinter};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::{
    REST_BASE,
    aql::Refusal,
    counters::Tally,
    faults::{Asked, Rule, damaged},
    filter::{SYSTEM_ID, UidValue, parse_uuid},
    handle::{App, Commit, Handle},
    query::{self, Release, time_text, version_uid},
    quirks::Quirks,
    templates::Template,
    world::{Found, Version, World},
};

/// An AQL query with 10,000 uids is about 0.5 MB.
const LARGEST_REQUEST: usize = 8 * 1024 * 1024;

pub(crate) fn router(app: Arc<App>) -> Router {
    let rest = Router::new()
        .route("/query/aql", post(aql))
        .route("/definition/template/adl1.4", get(template_list))
        .route("/definition/template/adl1.4/{id}", get(template))
        .route("/ehr/{ehr}/composition/{uid}", get(composition))
        .route(
            "/ehr/{ehr}/versioned_composition/{id}/revision_history",
            get(revision_history),
        );
    let server = Router::new()
        .nest(REST_BASE, rest)
        .route("/ehrbase/rest/status", get(status))
        .fallback(nothing_here)
        .layer(from_fn_with_state(Arc::clone(&app), every_request))
        .with_state(Arc::clone(&app));
    let controls = Router::new()
        .route("/sample/faults", post(add_faults).delete(clear_faults))
        .route("/sample/quirks", put(set_quirks))
        .route("/sample/changes", post(change))
        .route("/sample/counters", get(counters))
        .route("/sample/compositions/{number}", get(sample_composition));
    controls
        .fallback_service(server)
        .layer(DefaultBodyLimit::max(LARGEST_REQUEST))
        .with_state(app)
}

async fn aql(State(app): State<Arc<App>>, body: Bytes) -> Response {
    let request = match query::Request::parse(&body) {
        Ok(request) => request,
        Err(refusal) => return refused(refusal),
    };
    let kind = request.kind();
    app.tally.count_query(kind);
    let answer = request.answer(
        app.world(),
        app.clock.now_us(),
        app.style,
        app.quirks(),
        Arc::clone(&app.tally),
    );
    let mut response = match answer {
        Ok(pieces) => {
            let body = Body::from_stream(stream::iter(pieces.map(Ok::<_, io::Error>)));
            (json_content(), body).into_response()
        }
        Err(refusal) => refused(refusal),
    };
    response.extensions_mut().insert(Asked::Aql(kind));
    response
}

async fn status(State(app): State<Arc<App>>) -> Response {
    let version = match app.style.release {
        Release::Ehrbase2_16 => "2.16.0",
        Release::Ehrbase2_31 => "2.31.0",
    };
    Json(json!({
        "ehrbase_version": version,
        "jvm_version": "none: atlas-sample-cdr",
        "os_version": "none: atlas-sample-cdr",
        "postgres_version": "none: atlas-sample-cdr",
    }))
    .into_response()
}

async fn template_list() -> Response {
    let list: Vec<Value> = Template::ALL
        .into_iter()
        .map(|template| {
            json!({
                "template_id": template.id(),
                "concept": template.concept(),
                "archetype_id": template.root_archetype(),
                "created_timestamp": "2025-01-01T00:00:00.000Z",
            })
        })
        .collect();
    Json(list).into_response()
}

async fn template(Path(id): Path<String>, headers: HeaderMap) -> Response {
    let Some(template) = Template::from_id(&id) else {
        return error(StatusCode::NOT_FOUND, "Operational template not found");
    };
    // Without an Accept header the real server sends the operational template as XML, which this one does not have.
    match accepts(&headers, "json") {
        true => (json_content(), template.web_template()).into_response(),
        false => StatusCode::NOT_ACCEPTABLE.into_response(),
    }
}

async fn composition(
    State(app): State<Arc<App>>,
    Path((ehr, uid)): Path<(String, String)>,
) -> Response {
    let world = app.world();
    let mut response = match find(&world, &ehr, &uid) {
        Err(refusal) => refused(refusal),
        Ok((number, version)) => match world.look_up(number, version, app.clock.now_us()) {
            Found::Nothing => refused(not_found()),
            Found::Deleted => StatusCode::NO_CONTENT.into_response(),
            Found::Composition(_) if world.is_unreadable(number) => error(
                StatusCode::BAD_REQUEST,
                "parent already has child f (scripted: this composition cannot be read back)",
            ),
            Found::Composition(row) => {
                let mut text = String::new();
                query::write_composition(&mut text, &row, &world, app.style);
                app.tally.compositions.fetch_add(1, Relaxed);
                let mut response = (json_content(), text).into_response();
                let tag = format!("\"{}\"", version_uid(row.object_id, row.version));
                if let Ok(tag) = HeaderValue::from_str(&tag) {
                    response.headers_mut().insert(header::ETAG, tag);
                }
                response
            }
        },
    };
    response.extensions_mut().insert(Asked::Composition);
    response
}

async fn revision_history(
    State(app): State<Arc<App>>,
    Path((ehr, id)): Path<(String, String)>,
) -> Response {
    let world = app.world();
    let mut response = match find(&world, &ehr, &id) {
        Err(refusal) => refused(refusal),
        Ok((number, _)) => {
            let items: Vec<Value> = world
                .versions(number, app.clock.now_us())
                .iter()
                .zip(1..)
                .map(|(version, place)| revision(world.object_id(number), place, version))
                .collect();
            match app.style.release {
                _ if items.is_empty() => refused(not_found()),
                Release::Ehrbase2_16 => Json(json!(items)).into_response(),
                Release::Ehrbase2_31 => {
                    Json(json!({"_type": "REVISION_HISTORY", "items": items})).into_response()
                }
            }
        }
    };
    response.extensions_mut().insert(Asked::Composition);
    response
}

fn revision(object_id: u128, place: u32, version: &Version) -> Value {
    json!({
        "version_id": {"_type": "OBJECT_VERSION_ID", "value": version_uid(object_id, place)},
        "audits": [{
            "_type": "AUDIT_DETAILS",
            "system_id": SYSTEM_ID,
            "time_committed": {"_type": "DV_DATE_TIME", "value": time_text(version.committed_us)},
            "change_type": {
                "_type": "DV_CODED_TEXT",
                "value": version.change.name(),
                "defining_code": {
                    "_type": "CODE_PHRASE",
                    "terminology_id": {"_type": "TERMINOLOGY_ID", "value": "openehr"},
                    "code_string": version.change.code(),
                },
            },
            "committer": {"_type": "PARTY_IDENTIFIED", "name": "Sample Committer"},
        }],
    })
}

/// The composition that a path names, and the version if it names one. Whose EHR it is must be right.
fn find(world: &World, ehr: &str, uid: &str) -> Result<(u64, Option<u32>), Refusal> {
    let Some((uid, _)) = UidValue::parse(uid) else {
        return Err(Refusal::bad_request(
            "The path holds no object id or version uid",
        ));
    };
    let number = world.find(uid.object_id).ok_or_else(not_found)?;
    match parse_uuid(ehr) == Some(world.ehr_id(number)) {
        true => Ok((number, uid.version)),
        false => Err(not_found()),
    }
}

fn not_found() -> Refusal {
    Refusal {
        status: 404,
        message: "No EHR or composition with this ID can be found".into(),
    }
}

async fn nothing_here(State(app): State<Arc<App>>, request: Request) -> Response {
    container_error(
        StatusCode::NOT_FOUND,
        request.uri().path(),
        app.clock.now_us(),
    )
}

async fn add_faults(State(app): State<Arc<App>>, Json(rules): Json<Vec<Rule>>) -> StatusCode {
    let handle = Handle::new(app);
    rules.into_iter().for_each(|rule| handle.inject(rule));
    StatusCode::NO_CONTENT
}

async fn clear_faults(State(app): State<Arc<App>>) -> StatusCode {
    Handle::new(app).clear_faults();
    StatusCode::NO_CONTENT
}

async fn set_quirks(State(app): State<Arc<App>>, Json(quirks): Json<Quirks>) -> StatusCode {
    Handle::new(app).set_quirks(quirks);
    StatusCode::NO_CONTENT
}

/// The body of `POST /sample/changes`: numbers of compositions, and new ones.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Changes {
    update: Vec<u64>,
    delete: Vec<u64>,
    erase: Vec<u64>,
    unreadable: Vec<u64>,
    readable: Vec<u64>,
    commit: Vec<NewComposition>,
    advance_secs: u64,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct NewComposition {
    template_id: String,
    /// RFC 3339; now if absent.
    #[serde(default)]
    committed: Option<String>,
    /// RFC 3339; `committed` if absent.
    #[serde(default)]
    visible: Option<String>,
}

impl NewComposition {
    fn read(&self, now: Timestamp) -> Option<(Template, Commit)> {
        let template = Template::from_id(&self.template_id)?;
        let committed = match &self.committed {
            Some(text) => text.parse().ok()?,
            None => now,
        };
        let visible = match &self.visible {
            Some(text) => text.parse().ok()?,
            None => committed,
        };
        Some((template, Commit { committed, visible }))
    }
}

/// Answers how many changes were made and the numbers of the new compositions.
async fn change(State(app): State<Arc<App>>, Json(changes): Json<Changes>) -> Response {
    let handle = Handle::new(app);
    handle.advance(std::time::Duration::from_secs(changes.advance_secs));
    let mut new = Vec::new();
    for composition in &changes.commit {
        match composition.read(handle.now()) {
            Some(composition) => new.push(composition),
            None => return error(StatusCode::BAD_REQUEST, "no such template, or no time"),
        }
    }
    let mut made = 0;
    made += changes.update.iter().filter(|k| handle.update(**k)).count();
    made += changes.delete.iter().filter(|k| handle.delete(**k)).count();
    made += changes.erase.iter().filter(|k| handle.erase(**k)).count();
    for number in changes.unreadable {
        handle.set_unreadable(number, true);
    }
    for number in changes.readable {
        handle.set_unreadable(number, false);
    }
    let new: Vec<u64> = new
        .into_iter()
        .map(|(template, when)| handle.commit_at(template, when))
        .collect();
    Json(json!({"changed": made, "committed": new})).into_response()
}

async fn counters(State(app): State<Arc<App>>) -> Response {
    Json(app.tally.read()).into_response()
}

async fn sample_composition(State(app): State<Arc<App>>, Path(number): Path<u64>) -> Response {
    let handle = Handle::new(app);
    match (handle.version_uid(number), handle.ehr_id(number)) {
        (Some(uid), Some(ehr_id)) => Json(json!({
            "uid": uid,
            "ehr_id": ehr_id,
            "template_id": handle.template(number).id(),
        }))
        .into_response(),
        _ => error(
            StatusCode::NOT_FOUND,
            "no such composition, or it is deleted",
        ),
    }
}

/// Access, counters, faults, compression and the clock, for every answer of the openEHR server.
async fn every_request(State(app): State<Arc<App>>, request: Request, next: Next) -> Response {
    app.tally.requests.fetch_add(1, Relaxed);
    let open = Open::new(&app.tally);
    let gzip = app.gzip && header_contains(request.headers(), header::ACCEPT_ENCODING, "gzip");
    let given = request.headers().get(header::AUTHORIZATION);
    let mut response = match &app.authorization {
        Some(wanted) if given.is_none_or(|given| given.as_bytes() != wanted.as_bytes()) => {
            unauthorized(request.uri().path(), app.clock.now_us())
        }
        _ => next.run(request).await,
    };
    let asked = response.extensions().get::<Asked>().copied();
    let planned = app.script().take(asked.unwrap_or(Asked::Other));
    if !planned.latency.is_zero() {
        tokio::select! {
            () = tokio::time::sleep(planned.latency) => {}
            () = app.stopping.cancelled() => {}
        }
    }
    if gzip {
        response = compressed(response);
    }
    if let Some(damage) = planned.damage {
        app.tally.faults.fetch_add(1, Relaxed);
        response = damaged(response, damage);
    }
    let now = Timestamp::from_microsecond(app.clock.now_us()).unwrap_or_default();
    if let Ok(date) = DateTimePrinter::new().timestamp_to_rfc9110_string(&now)
        && let Ok(date) = HeaderValue::from_str(&date)
    {
        response.headers_mut().insert(header::DATE, date);
    }
    watched(response, app, open)
}

/// A request that is not answered yet.
struct Open(Arc<Tally>);

impl Open {
    fn new(tally: &Arc<Tally>) -> Self {
        tally.open();
        Self(Arc::clone(tally))
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.close();
    }
}

/// Counts the body as it is taken, and breaks it off when the server stops.
fn watched(response: Response, app: Arc<App>, open: Open) -> Response {
    let (head, body) = response.into_parts();
    let state = Some((body.into_data_stream(), app, open));
    let body = stream::unfold(state, |state| async move {
        let (mut body, app, open) = state?;
        let piece = tokio::select! {
            piece = body.next() => piece?.map_err(io::Error::other),
            () = app.stopping.cancelled() => Err(io::Error::other("the server stops")),
        };
        match piece {
            Ok(piece) => {
                app.tally.body_bytes.fetch_add(piece.len() as u64, Relaxed);
                Some((Ok(piece), Some((body, app, open))))
            }
            Err(error) => Some((Err(error), None)),
        }
    });
    Response::from_parts(head, Body::from_stream(body))
}

fn compressed(response: Response) -> Response {
    let (mut head, body) = response.into_parts();
    head.headers.remove(header::CONTENT_LENGTH);
    head.headers
        .insert(header::CONTENT_ENCODING, HeaderValue::from_static("gzip"));
    let encoder = GzEncoder::new(Vec::new(), Compression::fast());
    let state = Some((body.into_data_stream(), encoder));
    let body = stream::unfold(state, |state| async move {
        let (mut body, mut encoder) = state?;
        let packed = match body.next().await {
            Some(Ok(piece)) => {
                let written = encoder.write_all(&piece);
                let packed = written.map(|()| std::mem::take(encoder.get_mut()));
                return Some((packed.map(Bytes::from), Some((body, encoder))));
            }
            Some(Err(error)) => Err(io::Error::other(error)),
            None => encoder.finish(),
        };
        Some((packed.map(Bytes::from), None))
    });
    Response::from_parts(head, Body::from_stream(body))
}

fn unauthorized(path: &str, now_us: i64) -> Response {
    let mut response = container_error(StatusCode::UNAUTHORIZED, path, now_us);
    response.headers_mut().insert(
        header::WWW_AUTHENTICATE,
        HeaderValue::from_static("Basic realm=\"Realm\""),
    );
    response
}

/// An error as the container around EHRbase words it.
fn container_error(status: StatusCode, path: &str, now_us: i64) -> Response {
    let body = json!({
        "timestamp": time_text(now_us),
        "status": status.as_u16(),
        "error": status.canonical_reason(),
        "path": path,
    });
    (status, Json(body)).into_response()
}

/// An error as EHRbase itself words it.
fn error(status: StatusCode, message: &str) -> Response {
    let body = json!({"error": status.canonical_reason(), "message": message});
    (status, Json(body)).into_response()
}

fn refused(refusal: Refusal) -> Response {
    let status = StatusCode::from_u16(refusal.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    error(status, &refusal.message)
}

fn json_content() -> [(header::HeaderName, HeaderValue); 1] {
    [(
        header::CONTENT_TYPE,
        HeaderValue::from_static("application/json"),
    )]
}

fn accepts(headers: &HeaderMap, what: &str) -> bool {
    header_contains(headers, header::ACCEPT, what)
}

fn header_contains(headers: &HeaderMap, name: header::HeaderName, what: &str) -> bool {
    headers
        .get_all(name)
        .iter()
        .any(|value| value.to_str().is_ok_and(|value| value.contains(what)))
}

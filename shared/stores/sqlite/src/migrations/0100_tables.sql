CREATE TABLE compositions (
    -- One row per versioned composition: its newest version that Atlas has seen.
    -- Times are UTC text such as 2026-11-23T03:50:12.116601Z: they sort as they follow each other.
    row_id          INTEGER NOT NULL PRIMARY KEY, -- narrow key inside this file; what belongs to a row points to it
    id              TEXT    NOT NULL UNIQUE, -- object id of the versioned composition
    composition_uid TEXT    NOT NULL, -- full version uid, as the server said it
    version         INTEGER NOT NULL, -- version number, from 1
    ehr_id          TEXT    NOT NULL, -- EHR it belongs to
    template_id     TEXT    NOT NULL, -- its template
    time_committed  TEXT    NOT NULL, -- when the source committed this version
    change_type     TEXT    NOT NULL, -- creation, modification, …, as the server said it
    export_mode     TEXT    NOT NULL, -- format of content: preserve, flatten or canonical
    checksum        TEXT    NOT NULL, -- SHA-256 of content in RFC 8785 order, hexadecimal
    exported_at     TEXT    NOT NULL, -- when Atlas wrote this row
    run_id          TEXT    NOT NULL, -- run that wrote this row: atlas_runs.id
    atlas_version   TEXT    NOT NULL, -- program that wrote this row
    asked           TEXT    NOT NULL, -- when the source was asked for what this row says
    deleted_at      TEXT,             -- when the source was found to have deleted it; null = it is there
    deleted_reason  TEXT,             -- deleted, erased, withdrawn or confirmed; null = it is there
    content         TEXT    NOT NULL  -- JSON, in the format that export_mode names
) STRICT;

CREATE INDEX compositions_by_template_time ON compositions (template_id, deleted_at, time_committed);

-- There is no index by EHR: each commit would dirty a page of it for nearly every row, which halves the rate of a file of a million
-- rows. Erasing an EHR reads the table; who looks rows up by EHR adds the index to a copy of the file, or to this one at that price.

CREATE TABLE atlas_watermarks (
    -- How far each template is complete, for one selection.
    selection          TEXT NOT NULL, -- which EHRs, times and format were asked for: a digest
    template_id        TEXT NOT NULL, -- the template
    until              TEXT NOT NULL, -- the watermark: every composition committed before this was seen
    late_checked_until TEXT NOT NULL, -- before this, also what became visible late was looked for
    position           TEXT,          -- the source's own text of until, where it has one
    PRIMARY KEY (selection, template_id)
) STRICT, WITHOUT ROWID;

CREATE INDEX atlas_watermarks_by_template ON atlas_watermarks (template_id, until);

CREATE VIEW watermarks AS
    -- The newest data per template and EHR, and how far the template was checked.
    SELECT c.template_id,                              -- template_id: the template
           c.ehr_id,                                   -- ehr_id: the EHR
           max(c.time_committed) AS newest_committed,  -- latest commit time among the compositions
           count(*)              AS compositions,      -- how many there are, deleted ones left out
           (SELECT min(w.until) FROM atlas_watermarks AS w
            WHERE w.template_id = c.template_id) AS checked_until -- before this everything was seen; lowest of all selections
    FROM compositions AS c
    WHERE c.deleted_at IS NULL
    GROUP BY c.template_id, c.ehr_id;

CREATE TABLE atlas_slices (
    -- Units of work: one template or several small ones, one window of commit time.
    id                TEXT    NOT NULL PRIMARY KEY, -- the same for planners that decide the same
    run_id            TEXT    NOT NULL, -- run that planned it
    selection         TEXT    NOT NULL, -- selection whose watermark it carries
    template_id       TEXT    NOT NULL, -- the template; of several, the first one
    members           TEXT,             -- templates that share it, with their counts, as JSON; null = it has one
    kind              TEXT    NOT NULL, -- read, compare or retry
    window_from       TEXT    NOT NULL, -- first commit time inside
    window_to         TEXT    NOT NULL, -- first commit time after
    planned           TEXT    NOT NULL, -- the source's clock when it was planned
    expected          INTEGER NOT NULL, -- compositions that the source counted when it was planned
    state             TEXT    NOT NULL, -- open, done or failed
    step              INTEGER NOT NULL, -- changes of this record so far
    page              INTEGER NOT NULL, -- pages that were committed so far
    fence             INTEGER NOT NULL, -- raised by each worker that takes it; an older one may not commit
    owner             TEXT,             -- who works on it; null = nobody
    lease_until       TEXT,             -- until when the owner is left alone
    part              INTEGER NOT NULL, -- the part that the next message may start, from 1
    sent_part         INTEGER NOT NULL, -- the highest part whose message is known to be in the queue
    enqueued          TEXT,             -- when that message was sent
    moved             TEXT,             -- when a page of it was committed last; before the first page, when a worker took it first
    next_page         INTEGER,          -- compositions in the page that is tried next, as the last worker learnt it; null = unknown
    cursor_committed  TEXT,             -- commit time of the last composition that is durable
    cursor_object     TEXT,             -- its object id
    cursor_position   TEXT,             -- the source's own text of its place, where it has one
    count_read        INTEGER NOT NULL, -- written + unchanged + filtered + quarantined + deleted
    count_written     INTEGER NOT NULL, -- new here, or replaced
    count_inserted    INTEGER NOT NULL, -- of those written: new here, or a tombstone before
    count_unchanged   INTEGER NOT NULL, -- here already, in this version or a newer one
    count_filtered    INTEGER NOT NULL, -- not meant for this copy
    count_quarantined INTEGER NOT NULL, -- in atlas_quarantine
    count_deleted     INTEGER NOT NULL, -- made tombstones
    failure           TEXT              -- why it failed last
) STRICT;

CREATE INDEX atlas_slices_by_selection ON atlas_slices (selection, template_id, window_from);

CREATE INDEX atlas_slices_by_run ON atlas_slices (run_id);

CREATE INDEX atlas_slices_waiting ON atlas_slices (run_id, template_id, window_from, window_to, id)
    WHERE state = 'open' AND sent_part < part;

CREATE INDEX atlas_slices_under_way ON atlas_slices (id) WHERE state = 'open' AND (sent_part >= part OR owner IS NOT NULL);

CREATE INDEX atlas_slices_failed ON atlas_slices (selection, id) WHERE state = 'failed';

CREATE INDEX atlas_slices_read ON atlas_slices (selection, template_id, window_from, window_to, id)
    WHERE kind = 'read' AND state = 'done' AND members IS NULL;

CREATE INDEX atlas_slices_read_together ON atlas_slices (selection, window_from, window_to, id)
    WHERE state = 'done' AND members IS NOT NULL;

CREATE TABLE atlas_counts (
    -- What became of the compositions of each template in slices that were removed.
    template_id       TEXT    NOT NULL PRIMARY KEY, -- the template
    count_read        INTEGER NOT NULL, -- written + unchanged + filtered + quarantined + deleted
    count_written     INTEGER NOT NULL, -- new here, or replaced
    count_inserted    INTEGER NOT NULL, -- of those written: new here, or a tombstone before
    count_unchanged   INTEGER NOT NULL, -- here already, in this version or a newer one
    count_filtered    INTEGER NOT NULL, -- not meant for this copy
    count_quarantined INTEGER NOT NULL, -- in atlas_quarantine
    count_deleted     INTEGER NOT NULL  -- made tombstones
) STRICT, WITHOUT ROWID;

CREATE TABLE atlas_landed (
    -- The last page of each slice whose ledger is not in this file.
    slice            TEXT    NOT NULL PRIMARY KEY, -- the slice
    fence            INTEGER NOT NULL, -- nothing is landed under a lower one
    page             INTEGER,          -- number of the last page that landed; null = none
    landed_fence     INTEGER,          -- the fence under which it landed
    cursor_committed TEXT,             -- commit time of the last composition of that page
    cursor_object    TEXT,             -- its object id
    cursor_position  TEXT,             -- the source's own text of its place, where it has one
    counts           TEXT,             -- what the page adds to the counts of its slice, as JSON
    ways             TEXT              -- what became of each of its rows, as JSON
) STRICT;

CREATE TABLE atlas_quarantine (
    -- Compositions that could not be copied, each with its reason; at most one entry per object.
    id              TEXT    NOT NULL PRIMARY KEY, -- object id of the versioned composition
    composition_uid TEXT    NOT NULL, -- full version uid, as the server said it
    version         INTEGER NOT NULL, -- version number
    ehr_id          TEXT    NOT NULL, -- EHR it belongs to
    template_id     TEXT    NOT NULL, -- its template
    time_committed  TEXT    NOT NULL, -- when the source committed this version
    change_type     TEXT    NOT NULL, -- creation, modification, …, as the server said it
    reason          TEXT    NOT NULL, -- unreadable, toolarge, inconvertible or unstorable
    detail          TEXT    NOT NULL, -- status or path of the culprit
    run_id          TEXT    NOT NULL, -- run that put it here
    since           TEXT    NOT NULL, -- when it was first refused
    tried           TEXT    NOT NULL, -- when it was last tried
    tries           INTEGER NOT NULL, -- in how many runs it was tried
    tried_by        TEXT    NOT NULL  -- run that tried it last
) STRICT;

CREATE INDEX atlas_quarantine_by_tried ON atlas_quarantine (tried, id);

CREATE INDEX atlas_quarantine_by_template_tried ON atlas_quarantine (template_id, tried, id);

CREATE INDEX atlas_quarantine_by_reason ON atlas_quarantine (template_id, reason, since, tried);

CREATE TABLE atlas_runs (
    -- One row per run.
    id                TEXT    NOT NULL PRIMARY KEY, -- a time-ordered uuid
    step              INTEGER NOT NULL, -- changes of this record so far
    origin            TEXT    NOT NULL, -- commandline, timer or ondemand
    request           TEXT,             -- what was asked for, as JSON: mode, templates and selection
    selection         TEXT    NOT NULL, -- what it was asked to copy: a digest
    mode              TEXT    NOT NULL, -- incremental or full
    started           TEXT    NOT NULL, -- when it began
    ended             TEXT,             -- when it ended; null = it runs, or was killed
    cut               TEXT,             -- commit times before this belong to it; null = nobody has begun to plan it
    source_clock      TEXT,             -- the source's clock when the cut was made
    planned           INTEGER NOT NULL, -- 1 = all its slices are in atlas_slices
    outcome           TEXT,             -- complete, partial, interrupted, failed or cancelled
    count_read        INTEGER NOT NULL, -- written + unchanged + filtered + quarantined + deleted
    count_written     INTEGER NOT NULL, -- new here, or replaced
    count_inserted    INTEGER NOT NULL, -- of those written: new here, or a tombstone before
    count_unchanged   INTEGER NOT NULL, -- here already, in this version or a newer one
    count_filtered    INTEGER NOT NULL, -- not meant for this copy
    count_quarantined INTEGER NOT NULL, -- in atlas_quarantine
    count_deleted     INTEGER NOT NULL, -- made tombstones
    failure           TEXT              -- why it could not be planned
) STRICT;

CREATE INDEX atlas_runs_by_start ON atlas_runs (started);

CREATE INDEX atlas_runs_unfinished ON atlas_runs (origin) WHERE ended IS NULL;

CREATE TABLE atlas_templates (
    -- Web templates, as the source served them.
    template_id  TEXT NOT NULL PRIMARY KEY, -- the template
    digest       TEXT NOT NULL, -- SHA-256 of web_template, hexadecimal
    web_template TEXT NOT NULL, -- JSON
    names        TEXT NOT NULL, -- FLAT path to SQL name, as JSON, where the format renames; else empty
    fetched      TEXT NOT NULL  -- when it was fetched
) STRICT;

CREATE TABLE atlas_records (
    -- Small control records that all processes share: the planner's lease, source slots and their limit, the last report.
    name       TEXT    NOT NULL PRIMARY KEY, -- what it is
    step       INTEGER NOT NULL, -- changes so far
    owner      TEXT,             -- who holds it; null = nobody
    held_until TEXT,             -- until when the holder is left alone
    value      TEXT    NOT NULL  -- JSON, or empty
) STRICT, WITHOUT ROWID;

-- 'Kdnc': tells Kadence's state from any other SQLite file.
PRAGMA application_id = 0x4b646e63;

-- What happened. Documents are JSON; a column exists only for what is asked for.
CREATE TABLE event (
    place    INTEGER PRIMARY KEY,           -- order of arrival, over all rollouts
    cluster  TEXT    NOT NULL,
    rollout  TEXT    NOT NULL,
    number   INTEGER NOT NULL,
    schema   INTEGER NOT NULL,
    document TEXT    NOT NULL CHECK (json_valid(document)),
    UNIQUE (rollout, number)
) STRICT;

CREATE INDEX rollouts ON event (cluster, place) WHERE number = 1;

-- The log keeps its own rules, whoever writes: no gap, no second first, no change afterwards.
CREATE TRIGGER event_is_next BEFORE INSERT ON event
WHEN NEW.number <> (SELECT coalesce(max(number), 0) + 1 FROM event WHERE rollout = NEW.rollout)
BEGIN SELECT raise(ABORT, 'not the next event'); END;

CREATE TRIGGER event_is_of_its_cluster BEFORE INSERT ON event
WHEN EXISTS (SELECT 1 FROM event WHERE rollout = NEW.rollout AND number = 1 AND cluster <> NEW.cluster)
BEGIN SELECT raise(ABORT, 'a rollout of another cluster'); END;

CREATE TRIGGER event_never_changes BEFORE UPDATE ON event
BEGIN SELECT raise(ABORT, 'events are never changed'); END;

CREATE TRIGGER event_never_goes BEFORE DELETE ON event
BEGIN SELECT raise(ABORT, 'events are never deleted'); END;

CREATE TABLE plan (
    hash     TEXT NOT NULL PRIMARY KEY CHECK (length(hash) = 64),
    document TEXT NOT NULL CHECK (json_valid(document))
) STRICT, WITHOUT ROWID;

-- Left by another terminal, taken by whoever works on the cluster. AUTOINCREMENT: a number is never given twice.
CREATE TABLE request (
    place    INTEGER PRIMARY KEY AUTOINCREMENT,
    cluster  TEXT NOT NULL,
    document TEXT NOT NULL CHECK (json_valid(document))
) STRICT;

-- The highest fencing number ever given out for a cluster.
CREATE TABLE turn (
    cluster TEXT    NOT NULL PRIMARY KEY,
    number  INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE cluster_name (
    name TEXT NOT NULL PRIMARY KEY,
    uid  TEXT NOT NULL
) STRICT, WITHOUT ROWID;

PRAGMA user_version = 1;

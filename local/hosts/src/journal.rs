//! What lies in the queues of this machine, in a file: it outlives the host, as a cloud's queue outlives its workers.
//!
//! ```text
//! {"put":{"queue":"export-work","id":"…","text":"…"}}     a message was put, changed or moved
//! {"gone":"…"}                                            it was deleted
//! ```
//! A host that starts finds what the last one left. All of it can be taken at once, and counts as never taken before: whoever
//! had it has ended, and a delay was for somebody who has ended, too.

use std::collections::BTreeMap;
use std::fs::{File, TryLockError};
use std::io::{ErrorKind, Write as _};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};

/// The file in the folder of the state.
const FILE: &str = "queues";

/// Locked as long as a host lives.
const LOCK: &str = "lock";

/// The state of a host cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// A host that lives uses the folder.
    #[error("another host runs with the state in {}; stop it, or name another folder by --state", .0.display())]
    InUse(PathBuf),
    /// The system refused.
    #[error("failed to {action} {}; is the folder writable?", path.display())]
    File {
        /// Completes the sentence "failed to …".
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Line {
    Put(Message),
    Gone(String),
}

/// A message as it lies in a queue.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Message {
    pub(crate) queue: String,
    pub(crate) id: String,
    pub(crate) text: String,
}

/// The file of one host.
#[derive(Debug)]
pub(crate) struct Journal(Mutex<Option<Open>>);

#[derive(Debug)]
struct Open {
    file: File,
    _lock: File,
}

/// What the last host left.
#[derive(Debug, Default)]
pub(crate) struct Left {
    /// Whether there was one.
    pub(crate) is_successor: bool,
    /// In the order in which they were put.
    pub(crate) messages: Vec<Message>,
}

impl Journal {
    /// Opens the journal of a folder, which is made if there is none.
    ///
    /// # Errors
    /// `InUse` if another host has it; else what the system said.
    pub(crate) fn open(folder: &Path) -> Result<(Self, Left), JournalError> {
        let path = folder.join(FILE);
        let at = |action, path: &Path| {
            let path = path.to_owned();
            move |source| JournalError::File {
                action,
                path,
                source,
            }
        };
        atlas_files::create_folders(folder).map_err(at("make", folder))?;
        let lock = atlas_files::options()
            .write(true)
            .create(true)
            .truncate(false)
            .open(folder.join(LOCK))
            .map_err(at("open", folder))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(JournalError::InUse(folder.to_owned())),
            Err(TryLockError::Error(source)) => return Err(at("lock", folder)(source)),
        }
        let left = match std::fs::read(&path) {
            Ok(text) => Left {
                is_successor: true,
                messages: replay(&text),
            },
            Err(error) if error.kind() == ErrorKind::NotFound => Left::default(),
            Err(error) => return Err(at("read", &path)(error)),
        };
        // Written anew, without what is gone. A crash in between leaves the old file.
        let anew = folder.join("queues.new");
        let lines: String = left
            .messages
            .iter()
            .cloned()
            .map(Line::Put)
            .map(line)
            .collect();
        atlas_files::write(&anew, lines)
            .and_then(|()| std::fs::rename(&anew, &path))
            .map_err(at("write", &path))?;
        let file = atlas_files::options()
            .append(true)
            .open(&path)
            .map_err(at("open", &path))?;
        let open = Open { file, _lock: lock };
        Ok((Self(Mutex::new(Some(open))), left))
    }

    /// From now on it is another host's: what happens to the queues is not written any more.
    pub(crate) fn close(&self) {
        self.open_file().take();
    }

    fn open_file(&self) -> MutexGuard<'_, Option<Open>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A message was put, changed or moved to another queue.
    pub(crate) fn put(&self, queue: &str, id: &str, text: &str) {
        self.write(Line::Put(Message {
            queue: queue.to_owned(),
            id: id.to_owned(),
            text: text.to_owned(),
        }));
    }

    /// A message was deleted.
    pub(crate) fn gone(&self, id: &str) {
        self.write(Line::Gone(id.to_owned()));
    }

    /// Whether the disk is full or gone, the queue goes on: only a successor would miss something.
    fn write(&self, entry: Line) {
        let mut open = self.open_file();
        let Some(open) = &mut *open else {
            return;
        };
        // One write for one line: a host that is killed leaves at most its last line unfinished.
        if let Err(error) = open.file.write_all(line(entry).as_bytes()) {
            tracing::error!(
                "a change of the queues was not saved, and a host that is started later will not know of it: {}",
                error.kind()
            );
        }
    }
}

fn line(entry: Line) -> String {
    // These types always have a JSON form.
    serde_json::to_string(&entry).map_or_else(|_| String::new(), |text| text + "\n")
}

/// What is left when all lines have been followed. An unfinished last line never happened: nobody was answered for it.
fn replay(text: &[u8]) -> Vec<Message> {
    let mut order = 0_u64;
    let mut left: BTreeMap<String, (u64, Message)> = BTreeMap::new();
    for line in text.split(|byte| *byte == b'\n') {
        match serde_json::from_slice(line) {
            Ok(Line::Put(message)) => {
                let place = left.get(&message.id).map_or(order, |(place, _)| *place);
                order += 1;
                left.insert(message.id.clone(), (place, message));
            }
            Ok(Line::Gone(id)) => {
                left.remove(&id);
            }
            Err(_) => {}
        }
    }
    let mut messages: Vec<(u64, Message)> = left.into_values().collect();
    messages.sort_by_key(|(place, _)| *place);
    messages.into_iter().map(|(_, message)| message).collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn texts(left: &Left) -> Vec<(&str, &str)> {
        let messages = left.messages.iter();
        messages
            .map(|message| (message.queue.as_str(), message.text.as_str()))
            .collect()
    }

    #[test]
    fn a_successor_finds_what_was_put_changed_and_moved_and_not_what_is_gone() {
        let folder = tempfile::tempdir().unwrap();
        let (journal, left) = Journal::open(folder.path()).unwrap();
        assert!(!left.is_successor && left.messages.is_empty());
        for id in ["1", "2", "3", "4"] {
            journal.put("work", id, id);
        }
        journal.gone("1");
        journal.put("work", "2", "changed");
        journal.put("dead", "3", "3");
        let again = Journal::open(folder.path());
        assert!(matches!(again, Err(JournalError::InUse(_))));
        // Killed in the middle of a line.
        let mut open = journal.open_file();
        let file = &mut open.as_mut().unwrap().file;
        file.write_all(b"{\"gone\":\"4").unwrap();
        drop(open);
        journal.close();
        for _ in 0..2 {
            let (_journal, left) = Journal::open(folder.path()).unwrap();
            assert!(left.is_successor);
            let expected = [("work", "changed"), ("dead", "3"), ("work", "4")];
            assert_eq!(texts(&left), expected);
        }
    }
}

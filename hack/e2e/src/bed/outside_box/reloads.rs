//! The watcher beside nginx that loads what the updater has changed, some time after the
//! updater has answered.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};

use crate::bed::outside_box::nginx::Nginx;

/// What follows a change of the streams.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Reloads {
    /// nginx is reloaded, once for all changes of a moment.
    #[default]
    EachChange,
    /// Nothing, until this is set to another value.
    Held,
}

/// The watcher of a box.
pub struct Watcher {
    watch: Arc<Watch>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

struct Watch {
    now: Mutex<Now>,
    changed: Condvar,
}

#[derive(Default)]
struct Now {
    reloads: Reloads,
    is_changed: bool,
    has_ended: bool,
    done: usize,
    refused: Vec<String>,
}

impl Watcher {
    pub(super) fn of(nginx: &Arc<Nginx>) -> Self {
        let watch = Arc::new(Watch {
            now: Mutex::default(),
            changed: Condvar::new(),
        });
        let (watched, nginx) = (Arc::clone(&watch), Arc::clone(nginx));
        let thread = thread::spawn(move || run(&watched, &nginx));
        Self {
            watch,
            thread: Mutex::new(Some(thread)),
        }
    }

    /// Changes what follows a change; what was held is loaded.
    pub fn set(&self, reloads: Reloads) {
        self.watch.change(|now| now.reloads = reloads);
    }

    /// Misses the changes that are held: nginx is not reloaded for them. So does the original,
    /// a shell's loop around `inotifywait` that hears nothing while it reloads.
    pub fn miss(&self) {
        self.watch.change(|now| now.is_changed = false);
    }

    /// How often nginx was reloaded.
    pub fn reloads(&self) -> usize {
        self.watch.lock().done
    }

    /// Why nginx was not reloaded, each time that it was not: one stream that it does not
    /// like keeps it from loading any.
    pub fn refused(&self) -> Vec<String> {
        self.watch.lock().refused.clone()
    }

    /// Something in the streams' folder has changed.
    pub(super) fn notice(&self) {
        self.watch.change(|now| now.is_changed = true);
    }

    /// Ends it.
    pub(super) fn end(&self) {
        self.watch.change(|now| now.has_ended = true);
        let thread = self
            .thread
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        if let Some(thread) = thread {
            thread.join().ok();
        }
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        self.end();
    }
}

impl Watch {
    fn lock(&self) -> MutexGuard<'_, Now> {
        self.now.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, change: impl FnOnce(&mut Now)) {
        change(&mut self.lock());
        self.changed.notify_all();
    }
}

fn run(watch: &Watch, nginx: &Nginx) {
    let mut now = watch.lock();
    loop {
        let idle =
            |now: &mut Now| !now.has_ended && (!now.is_changed || now.reloads == Reloads::Held);
        let waited = watch.changed.wait_while(now, idle);
        now = waited.unwrap_or_else(PoisonError::into_inner);
        if now.has_ended {
            return;
        }
        now.is_changed = false;
        drop(now);
        let outcome = nginx.reload();
        now = watch.lock();
        match outcome {
            Ok(()) => now.done += 1,
            // A file may have gone while it was about to be read; that is a change.
            Err(_) if now.is_changed => {}
            Err(error) => now.refused.push(format!("{error:#}")),
        }
    }
}

//! Work that the calling thread shares with those that come in time.
//!
//! A scope of rayon's ends when every job that was spawned in it has run: if the threads of the
//! pool are busy, or slow to wake up, the caller waits for jobs that have nothing left to do. A
//! region ends when the threads that came have left, and turns away those that come later.
//!
//! ```text
//! state = CLOSED bit | threads inside
//! helper   comes:  +1, unless closed    work    leaves: -1, and wakes the caller if it is closed
//! caller   opens   work   closes: sets the bit, waits until nobody is inside
//! ```

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicUsize, Ordering::*};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::Thread;

/// The bit of a region that is closed.
const CLOSED: usize = 1 << (usize::BITS - 1);
/// How often the caller looks whether the helpers have left before it sleeps: for some
/// microseconds, then with a yield each time.
const SPINS: usize = 200;
const LOOKS: usize = 220;

/// An open or closed region.
pub(super) struct Region {
    state: AtomicUsize,
    /// Valid until the region is closed and nobody is inside.
    work: *const (dyn Fn() + Sync),
    caller: Thread,
    panic: Mutex<Option<Box<dyn Any + Send>>>,
}

// SAFETY: `work` is called by several threads, and is Sync; it is called between coming and leaving
// only. The other fields are Send and Sync.
unsafe impl Send for Region {}
// SAFETY: as above.
unsafe impl Sync for Region {}

impl Region {
    /// Opens a region, hands it to `ask`, works, closes it and waits for those inside. `work` takes
    /// what is left to do until nothing is; it calls nothing that waits for another thread of the
    /// pool. A helper's panic becomes the caller's.
    pub(super) fn open(work: &(dyn Fn() + Sync), ask: impl FnOnce(&Arc<Region>)) {
        /// Closes the region, also if something panics.
        struct Close<'a>(&'a Region);
        impl Drop for Close<'_> {
            fn drop(&mut self) {
                self.0.close();
            }
        }
        let work_here: *const (dyn Fn() + Sync + '_) = work;
        // SAFETY: the lifetime only. `work` is used while a thread is inside, and until `Close` is
        // dropped, which is before the borrow ends, nobody is left inside.
        let work_anywhere = unsafe {
            std::mem::transmute::<*const (dyn Fn() + Sync + '_), *const (dyn Fn() + Sync)>(
                work_here,
            )
        };
        let region = Arc::new(Region {
            state: AtomicUsize::new(0),
            work: work_anywhere,
            caller: std::thread::current(),
            panic: Mutex::new(None),
        });
        let close = Close(&region);
        ask(&region);
        work();
        drop(close);
        let panic = region.panic.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(panic) = panic {
            resume_unwind(panic);
        }
    }

    /// True until the caller has closed it.
    pub(super) fn is_open(&self) -> bool {
        self.state.load(Relaxed) & CLOSED == 0
    }

    /// Works too, unless the region is closed; true if it did.
    pub(super) fn help(&self) -> bool {
        let come = |state: usize| (state & CLOSED == 0).then_some(state + 1);
        if self.state.fetch_update(Acquire, Relaxed, come).is_err() {
            return false;
        }
        // SAFETY: this thread came before the region was closed, so the caller's borrow lasts until
        // it leaves.
        let worked = catch_unwind(AssertUnwindSafe(|| unsafe { (*self.work)() }));
        if let Err(panic) = worked {
            *self.panic.lock().unwrap_or_else(PoisonError::into_inner) = Some(panic);
        }
        if self.state.fetch_sub(1, Release) == CLOSED + 1 {
            self.caller.unpark();
        }
        true
    }

    fn close(&self) {
        let mut state = self.state.fetch_or(CLOSED, Acquire);
        for i in 0.. {
            if state & !CLOSED == 0 {
                return;
            }
            match i {
                ..SPINS => std::hint::spin_loop(),
                SPINS..LOOKS => std::thread::yield_now(),
                _ => std::thread::park(),
            }
            state = self.state.load(Acquire);
        }
    }
}

#[cfg(not(target_family = "wasm"))] // it has no threads
#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn helpers_that_come_in_time_work_and_late_ones_are_turned_away() {
        for _ in 0..200 {
            let (calls, mut late) = (AtomicUsize::new(0), None);
            std::thread::scope(|threads| {
                let work = || {
                    calls.fetch_add(1, Relaxed);
                    // Until the helper has come.
                    while calls.load(Relaxed) < 2 {
                        std::hint::spin_loop();
                    }
                };
                Region::open(&work, |region| {
                    let helper = region.clone();
                    threads.spawn(move || assert!(helper.help()));
                    late = Some(region.clone());
                });
            });
            let late = late.unwrap();
            assert!(!late.is_open() && !late.help());
            assert_eq!(calls.load(Relaxed), 2);
        }
    }

    #[test]
    fn a_caller_waits_for_those_inside_and_for_nobody_else() {
        let (inside, left) = (AtomicUsize::new(0), AtomicUsize::new(0));
        let caller = std::thread::current().id();
        std::thread::scope(|threads| {
            let work = || {
                if std::thread::current().id() == caller {
                    while inside.load(Relaxed) == 0 {
                        std::hint::spin_loop();
                    }
                } else {
                    inside.store(1, Relaxed);
                    // Longer than the caller spins.
                    std::thread::sleep(std::time::Duration::from_millis(20));
                    left.store(1, Relaxed);
                }
            };
            Region::open(&work, |region| {
                let helper = region.clone();
                threads.spawn(move || helper.help());
            });
            assert_eq!(left.load(Relaxed), 1, "the caller did not wait");
        });
        // Nobody comes.
        Region::open(&|| {}, |_| {});
    }

    #[test]
    fn a_panic_of_either_side_ends_the_region_and_comes_out() {
        let inside = AtomicUsize::new(0);
        let caller = std::thread::current().id();
        for helper_panics in [true, false] {
            let work = || {
                let here = std::thread::current().id() == caller;
                if !here {
                    inside.store(1, Relaxed);
                }
                while inside.load(Relaxed) == 0 {
                    std::hint::spin_loop();
                }
                assert!(here == helper_panics, "on purpose");
            };
            let ended = std::thread::scope(|threads| {
                catch_unwind(AssertUnwindSafe(|| {
                    Region::open(&work, |region| {
                        let helper = region.clone();
                        threads.spawn(move || helper.help());
                    });
                }))
            });
            assert!(ended.is_err(), "helper panics: {helper_panics}");
            inside.store(0, Relaxed);
        }
    }
}

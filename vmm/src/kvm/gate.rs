//! Where vCPU threads wait until they may run, and where the machine waits until they stand still.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// What vCPU threads are to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Order {
    /// Enter the guest.
    Run,
    /// Stand still outside it.
    Park,
    /// Return.
    End,
}

/// The gate that all vCPU threads of a machine pass.
#[derive(Debug)]
pub(super) struct Gate {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug)]
struct State {
    order: Order,
    /// Threads that are inside: between a pass with [`Order::Run`] and their next visit.
    inside: usize,
}

impl Gate {
    /// A closed gate.
    pub(super) fn new() -> Self {
        Self {
            state: Mutex::new(State {
                order: Order::Park,
                inside: 0,
            }),
            changed: Condvar::new(),
        }
    }

    /// Waits until the order is to run or to end, and gives it. `admitted` is called while no new order can be given,
    /// so that what it clears was set by an older order.
    pub(super) fn wait(&self, admitted: impl FnOnce()) -> Order {
        let mut state = self.lock();
        while state.order == Order::Park {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        if state.order == Order::Run {
            state.inside += 1;
            admitted();
        }
        state.order
    }

    /// A thread that was let in is out again.
    pub(super) fn leave(&self) {
        self.lock().inside -= 1;
        self.changed.notify_all();
    }

    /// Whether a thread inside may go on.
    pub(super) fn stays_open(&self) -> bool {
        self.lock().order == Order::Run
    }

    /// Gives a new order. Threads inside must be kicked to learn of it.
    pub(super) fn give(&self, order: Order) {
        self.lock().order = order;
        self.changed.notify_all();
    }

    /// Waits until nobody is inside.
    pub(super) fn wait_until_empty(&self) {
        let mut state = self.lock();
        while state.inside > 0 {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::{
        sync::{Arc, mpsc},
        thread,
    };

    use super::*;

    #[test]
    fn threads_wait_for_the_order_and_are_waited_for() {
        let gate = Arc::new(Gate::new());
        let (entered, entries) = mpsc::channel();
        let runner = thread::spawn({
            let gate = Arc::clone(&gate);
            move || {
                while gate.wait(|| {}) == Order::Run {
                    entered.send(()).unwrap();
                    while gate.stays_open() {
                        thread::yield_now();
                    }
                    gate.leave();
                }
            }
        });
        for _ in 0..2 {
            assert!(entries.try_recv().is_err(), "a thread passed the closed gate");
            gate.give(Order::Run);
            entries.recv().unwrap();
            gate.give(Order::Park);
            gate.wait_until_empty();
        }
        gate.give(Order::End);
        runner.join().unwrap();
    }
}

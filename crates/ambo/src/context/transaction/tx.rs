//! The open transaction as a body has it, and its way back.

use std::ops::{Deref, DerefMut};
use std::sync::{Arc, Mutex, PoisonError};

/// The open transaction, as the body of a transaction step has it: `&mut *tx` is the driver's own connection.
///
/// It must not be committed or rolled back by hand, nor outlive the body: that is found out, and stops the run
/// (`AMBO031`). Savepoints are fine.
#[derive(Debug)]
pub struct Tx<C: Send> {
    connection: Option<C>,
    home: Home<C>,
}

/// Where the connection comes back to when the body lets go of it.
#[derive(Debug)]
pub(super) struct Home<C>(Arc<Mutex<Option<C>>>);

impl<C> Clone for Home<C> {
    fn clone(&self) -> Self {
        Home(self.0.clone())
    }
}

impl<C> Home<C> {
    /// The connection, unless the body kept it.
    pub(super) fn take(&self) -> Option<C> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

/// Lends a connection to a body.
pub(super) fn lend<C: Send>(connection: C) -> (Tx<C>, Home<C>) {
    let home = Home(Arc::new(Mutex::new(None)));
    (Tx { connection: Some(connection), home: home.clone() }, home)
}

impl<C: Deref + Send> Deref for Tx<C> {
    type Target = C::Target;

    fn deref(&self) -> &C::Target {
        self.connection.as_ref().unwrap_or_else(|| unreachable!("the connection is there until the drop"))
    }
}

impl<C: DerefMut + Send> DerefMut for Tx<C> {
    fn deref_mut(&mut self) -> &mut C::Target {
        self.connection.as_mut().unwrap_or_else(|| unreachable!("the connection is there until the drop"))
    }
}

impl<C: Send> Drop for Tx<C> {
    fn drop(&mut self) {
        *self.home.0.lock().unwrap_or_else(PoisonError::into_inner) = self.connection.take();
    }
}

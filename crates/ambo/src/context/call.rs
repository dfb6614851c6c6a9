//! A durable call between being built and being awaited: configured first, begun by its first poll.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use futures_util::future::BoxFuture;

/// A call with options `O` that answers `R`. The type of its body is forgotten, so that futures of workflows that join
/// calls stay provably `Send`.
pub(crate) struct Call<'a, O, R> {
    plan: Option<(O, Plan<'a, O, R>)>,
    running: Option<BoxFuture<'a, R>>,
}

type Plan<'a, O, R> = Box<dyn FnOnce(O) -> BoxFuture<'a, R> + Send + 'a>;

impl<'a, O, R> Call<'a, O, R> {
    pub(crate) fn new<Fut>(options: O, plan: impl FnOnce(O) -> Fut + Send + 'a) -> Self
    where
        Fut: Future<Output = R> + Send + 'a,
    {
        Call { plan: Some((options, Box::new(move |options| Box::pin(plan(options))))), running: None }
    }

    /// Changes the options; without effect once it runs.
    pub(crate) fn configure(&mut self, change: impl FnOnce(&mut O)) {
        if let Some((options, _)) = &mut self.plan {
            change(options);
        }
    }
}

// Nothing in it is pinned in place: the running future is boxed.
impl<O, R> Unpin for Call<'_, O, R> {}

impl<O, R> Future for Call<'_, O, R> {
    type Output = R;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<R> {
        if let Some((options, plan)) = self.plan.take() {
            self.running = Some(plan(options));
        }
        match &mut self.running {
            Some(running) => running.as_mut().poll(cx),
            None => Poll::Pending,
        }
    }
}

impl<O, R> fmt::Debug for Call<'_, O, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Call").field("running", &self.running.is_some()).finish_non_exhaustive()
    }
}

/// Gives a built call its face: a type that is a future and can be printed.
macro_rules! face {
    ($name:ident<$life:lifetime $(, $param:ident)*>, $options:ty, $output:ty) => {
        impl<$life $(, $param)*> Future for $name<$life $(, $param)*> {
            type Output = $output;

            fn poll(
                mut self: std::pin::Pin<&mut Self>,
                cx: &mut std::task::Context<'_>,
            ) -> std::task::Poll<Self::Output> {
                std::pin::Pin::new(&mut self.0).poll(cx)
            }
        }

        impl<$life $(, $param)*> std::fmt::Debug for $name<$life $(, $param)*> {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.debug_tuple(stringify!($name)).field(&self.0).finish()
            }
        }
    };
}
pub(crate) use face;

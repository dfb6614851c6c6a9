//! `#[ambo::step]`: the function, and a type of its name that builds the durable step.

use proc_macro2::{Span, TokenStream};
use quote::{quote, quote_spanned};
use syn::spanned::Spanned as _;
use syn::visit_mut::{self, VisitMut};
use syn::{Error, Ident, ItemFn, Lifetime, Pat, Result, Type};

use crate::parse::{Function, Options, hidden, is_named};

/// A step as it was read.
struct Step {
    options: Options,
    function: Function,
    /// Whether the first parameter of the function is the attempt.
    attempt: bool,
    arguments: Vec<Argument>,
}

/// What the caller of the step hands over.
struct Argument {
    name: Ident,
    /// The type, in which every lifetime that was left out is the step's.
    ty: Type,
    /// Owned values are cloned for each attempt; references are copied.
    owned: bool,
}

pub(crate) fn expand(options: TokenStream, item: &mut ItemFn) -> Result<TokenStream> {
    Ok(parse(options, item)?.generate())
}

fn parse(options: TokenStream, item: &ItemFn) -> Result<Step> {
    let options = Options::parse(options, &["name", "retry", "timeout", "cancel_at_once", "crate"])?;
    let function = Function::check(item, "a step")?;
    let mut attempt = false;
    let mut arguments = Vec::new();
    for (index, parameter) in function.parameters.iter().enumerate() {
        if index == 0 && is_named(&parameter.ty, "Attempt") {
            attempt = true;
            continue;
        }
        let referred = match &*parameter.ty {
            Type::Reference(reference) => &reference.elem,
            other => other,
        };
        if is_named(referred, "Ctx") {
            return Err(Error::new_spanned(
                &parameter.ty,
                "a step has no context, as it holds no other steps; make this a function that takes `&mut Ctx<'_>` \
                 and calls steps, without `#[ambo::step]`",
            ));
        }
        if let Type::Reference(reference) = &*parameter.ty
            && let Some(mutability) = &reference.mutability
        {
            return Err(Error::new_spanned(
                mutability,
                "a step may be tried several times and changes nothing in place; take `&T` or an owned value, and \
                 return what is new",
            ));
        }
        let name = match &*parameter.pat {
            Pat::Ident(binding) => {
                let mut name = binding.ident.clone();
                name.set_span(Span::mixed_site().located_at(name.span()));
                name
            }
            other => hidden(&format!("argument_{index}"), other),
        };
        let owned = !matches!(&*parameter.ty, Type::Reference(_));
        let mut ty = (*parameter.ty).clone();
        Bind.visit_type_mut(&mut ty);
        arguments.push(Argument { name, ty, owned });
    }
    Ok(Step { options, function, attempt, arguments })
}

/// Writes `'step` where a lifetime was left out.
struct Bind;

impl VisitMut for Bind {
    fn visit_type_reference_mut(&mut self, reference: &mut syn::TypeReference) {
        let span = reference.and_token.span();
        reference.lifetime.get_or_insert_with(|| Lifetime::new("'step", span));
        visit_mut::visit_type_reference_mut(self, reference);
    }

    fn visit_lifetime_mut(&mut self, lifetime: &mut Lifetime) {
        if lifetime.ident == "_" {
            *lifetime = Lifetime::new("'step", lifetime.span());
        }
    }

    // What is left out within the types of functions is theirs.
    fn visit_type_fn_ptr_mut(&mut self, _: &mut syn::TypeFnPtr) {}
    fn visit_parenthesized_generic_arguments_mut(&mut self, _: &mut syn::ParenthesizedGenericArguments) {}
}

impl Step {
    /// A name that no argument has.
    fn unused(&self, name: &str) -> Ident {
        let taken = self.arguments.iter().any(|argument| argument.name == name);
        if taken { self.unused(&format!("{name}_")) } else { hidden(name, &self.function.item.sig.ident) }
    }

    fn generate(&self) -> TokenStream {
        let Options { retry, timeout, cancel_at_once, .. } = &self.options;
        let Function { item, returned, .. } = &self.function;
        let ambo = self.options.ambo(returned.span());
        let conditions = self.function.conditions();
        let (visibility, step) = (&item.vis, &item.sig.ident);
        let name = self.options.name_of(step);
        let about = format!("The step [`{step}`](fn@{step}), to be called in a workflow.");
        let (cx, attempt) = (self.unused("cx"), self.unused("attempt"));
        let declared = self.arguments.iter().map(|Argument { name, ty, .. }| quote!(#name: #ty));
        let passed = self.arguments.iter().map(|Argument { name, ty, owned }| match owned {
            true => quote_spanned!(name.span().located_at(ty.span())=> ::core::clone::Clone::clone(&#name)),
            false => quote!(#name),
        });
        let first = self.attempt.then(|| quote!(#attempt,));
        let call = quote_spanned!(step.span()=> #step(#first #(#passed),*));
        let output = quote_spanned! {returned.span()=>
            #ambo::Step<
                'step,
                <#returned as #ambo::__private::Returns>::Output,
                <#returned as #ambo::__private::Returns>::Error,
            >
        };
        let retry = retry.iter();
        let timeout = timeout.iter();
        let at_once = cancel_at_once.then(|| quote!(.cancel_at_once()));
        quote! {
            #item

            #(#conditions)*
            #[doc = #about]
            #[allow(non_camel_case_types)]
            #[derive(Debug)]
            #visibility struct #step {}

            #(#conditions)*
            const _: () = {
                #[allow(dead_code)]
                impl #step {
                    /// The name under which the step is recorded.
                    #visibility const NAME: &'static str = #name;

                    /// The durable call: takes its position now; configure it, then await it.
                    #[allow(unused_variables, clippy::too_many_arguments)]
                    #visibility fn step<'step, 'run: 'step>(
                        #cx: &mut #ambo::Ctx<'run>,
                        #(#declared),*
                    ) -> #output {
                        #ambo::Ctx::step_with(#cx, #name, move |#attempt| #call)
                            #(.retry(#retry))*
                            #(.timeout(#timeout))*
                            #at_once
                    }
                }
            };
        }
    }
}

//! What belongs to exits, in and out of the device: norms, low-rank terms, temperatures.

use anyhow::{Context, Result, ensure};

use super::linear::Lora;
use super::{Model, Norm};
use crate::exits::{ExitTerms, Exits};
use crate::vote::Learned;

/// A place where the model can be read out.
#[derive(Clone, Debug)]
pub struct Exit {
    /// Blocks below the exit.
    pub after: u32,
    /// Its norm.
    pub norm: Norm,
    /// Its low-rank term beside the head that all exits share.
    pub term: Option<Lora>,
}

impl Model {
    /// Puts trained exits, their norms and low-rank terms, into the model.
    ///
    /// # Errors
    /// Their number or rank is not the model's, or the device fails.
    pub fn set_exits(&mut self, exits: &Exits) -> Result<()> {
        let rank = exits.terms.as_ref().map_or(0, |terms| terms.rank as u32);
        ensure!(
            exits.gammas.len() == self.exits.len()
                && self.job.exit_norms
                && self.job.exit_rank == rank,
            "the model was built with {} exits of rank {}, the file holds {} of rank {rank}",
            self.exits.len(),
            self.job.exit_rank,
            exits.gammas.len()
        );
        for (exit, gamma) in self.exits.iter().zip(&exits.gammas) {
            self.device.write(&exit.norm.weight, bytemuck::cast_slice(gamma))?;
        }
        let Some(terms) = &exits.terms else { return Ok(()) };
        for (exit, (a, b)) in self.exits.iter_mut().zip(&terms.matrices) {
            let term = exit.term.as_mut().context("the model was built without exit terms")?;
            term.scale = terms.scale;
            self.device.write(&term.a.value, bytemuck::cast_slice(a))?;
            self.device.write(&term.b.value, bytemuck::cast_slice(b))?;
        }
        Ok(())
    }

    /// What [`Vote::Learned`] combines exits by.
    ///
    /// [`Vote::Learned`]: crate::exits::Vote::Learned
    pub fn learned(&self) -> Option<&Learned> {
        self.learned.as_ref()
    }

    /// Sets temperatures and weights of the learned vote, under the present exit norms.
    ///
    /// # Errors
    /// They are not the model's, or the device fails.
    pub fn set_learned(&mut self, learned: Learned) -> Result<()> {
        learned.check(self.vote_norms.len())?;
        for (exit, &temperature) in learned.temperatures.iter().enumerate() {
            let gamma = self.device.read_f32(&self.exits[exit].norm.weight)?;
            // The exit's norm over the temperature divides its logits by it.
            let gamma: Vec<f32> = gamma.iter().map(|gamma| gamma / temperature).collect();
            self.device.write(&self.vote_norms[exit], bytemuck::cast_slice(&gamma))?;
        }
        self.learned = Some(learned);
        Ok(())
    }

    /// The norm of an exit over its temperature.
    pub(crate) fn vote_norm(&self, exit: usize) -> Norm {
        Norm { weight: self.vote_norms[exit].clone(), grad: None }
    }

    /// The exit norms.
    ///
    /// # Errors
    /// The device fails.
    pub fn exit_gammas(&self) -> Result<Vec<Vec<f32>>> {
        let read = |exit: &Exit| Ok(self.device.read_f32(&exit.norm.weight)?);
        self.exits.iter().map(read).collect()
    }

    /// The exits' low-rank terms.
    ///
    /// # Errors
    /// The device fails.
    pub fn exit_terms(&self) -> Result<Option<ExitTerms>> {
        let Some(first) = self.exits.first().and_then(|exit| exit.term.as_ref()) else {
            return Ok(None);
        };
        let (rank, scale) = (first.rank as usize, first.scale);
        let read = |term: &Lora| {
            let a = self.device.read_f32(&term.a.value)?;
            Ok((a, self.device.read_f32(&term.b.value)?))
        };
        let matrices = self.exits.iter().filter_map(|exit| exit.term.as_ref()).map(read);
        Ok(Some(ExitTerms { rank, scale, matrices: matrices.collect::<Result<_>>()? }))
    }
}

//! Which file imports which, and whether any of them do so in a circle.

use std::collections::{BTreeMap, BTreeSet};

use crate::source::{Named, Source};

/// The imports between the files of one crate.
pub struct Imports<'s> {
    /// The files by their modules.
    files: BTreeMap<&'s [String], &'s str>,
    /// For each file, by what name it re-exports which path.
    reexports: BTreeMap<&'s str, Vec<(String, Vec<String>)>>,
    /// For each file, the files that it imports from, with one line that does so.
    edges: BTreeMap<&'s str, BTreeMap<&'s str, usize>>,
}

impl<'s> Imports<'s> {
    pub fn of(sources: &[&'s Source]) -> Imports<'s> {
        let files = sources.iter().map(|source| (&source.module[..], source.path.as_str())).collect();
        let mut imports = Imports { files, reexports: BTreeMap::new(), edges: BTreeMap::new() };
        let named: Vec<(&Source, Vec<Named>)> = sources.iter().map(|source| (*source, source.paths())).collect();
        for (source, paths) in &named {
            let reexported = paths.iter().filter(|named| named.is_reexport);
            let reexported = reexported
                .filter_map(|named| Some((named.path.last()?.clone(), imports.absolute(source, &named.path)?)));
            imports.reexports.insert(&source.path, reexported.collect());
        }
        for (source, paths) in &named {
            let mut edges = BTreeMap::new();
            for named in paths.iter().filter(|named| !named.is_reexport) {
                let target = imports.absolute(source, &named.path).and_then(|path| imports.file_of(&path, 0));
                if let Some(target) = target.filter(|target| *target != source.path) {
                    edges.entry(target).or_insert(named.line);
                }
            }
            imports.edges.insert(&source.path, edges);
        }
        imports
    }

    /// The path below the crate root. A path may begin with a module that the file itself declares.
    fn absolute(&self, source: &Source, path: &[String]) -> Option<Vec<String>> {
        let first = path.first()?;
        if first == "crate" {
            return Some(path[1..].to_vec());
        }
        let child = [&source.module[..], std::slice::from_ref(first)].concat();
        self.files.contains_key(&child[..]).then(|| [&source.module[..], path].concat())
    }

    /// The file that defines what the path names, through re-exports.
    fn file_of(&self, path: &[String], depth: usize) -> Option<&'s str> {
        let (length, file) = (0..=path.len()).rev().find_map(|n| Some((n, *self.files.get(&path[..n])?)))?;
        let rest = &path[length..];
        let reexported = rest.first().and_then(|name| {
            let of_file = self.reexports.get(file)?;
            let (_, target) = of_file.iter().find(|(known, _)| known == name)?;
            // A module that re-exports from itself ends here.
            (depth < 8).then(|| self.file_of(&[target, &rest[1..]].concat(), depth + 1))?
        });
        reexported.or(Some(file))
    }

    /// A sentence for each circle: the files that import each other, and where.
    pub fn circles(&self) -> Vec<String> {
        let mut sentences = Vec::new();
        let mut seen: BTreeSet<&str> = BTreeSet::new();
        for file in self.edges.keys() {
            let reached = self.reached_from(file);
            if !reached.contains(file) || seen.contains(file) {
                continue;
            }
            let circle: BTreeSet<&str> =
                reached.iter().copied().filter(|other| self.reached_from(other).contains(file)).collect();
            let mut imports = Vec::new();
            for from in &circle {
                let within = self.edges[from].iter().filter(|(to, _)| circle.contains(*to));
                imports.extend(within.map(|(to, line)| format!("{from}:{line} imports {to}")));
            }
            sentences.push(format!("files import each other in a circle: {}", imports.join(", ")));
            seen.extend(circle);
        }
        sentences
    }

    fn reached_from(&self, file: &str) -> BTreeSet<&'s str> {
        let mut reached = BTreeSet::new();
        let mut next: Vec<&str> = vec![file];
        while let Some(file) = next.pop() {
            for to in self.edges.get(file).into_iter().flat_map(BTreeMap::keys) {
                if reached.insert(*to) {
                    next.push(to);
                }
            }
        }
        reached
    }
}

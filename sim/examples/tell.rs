//! Tells the story of one seed: `cargo run -p kadence-sim --example tell -- SEED [COUNT]`.
#![expect(clippy::print_stdout, reason = "a program for people")]

use kadence_sim::explore::Case;

fn main() -> std::io::Result<()> {
    let mut args = std::env::args().skip(1).filter_map(|a| a.parse::<u64>().ok());
    let (seed, count) = (args.next().unwrap_or(0), args.next().unwrap_or(1));
    let scratch = std::env::temp_dir().join(format!("kadence-tell-{}", std::process::id()));
    let mut bad = 0;
    let mut ends = std::collections::BTreeMap::<String, u32>::new();
    let mut reached = std::collections::BTreeMap::<(String, String), u32>::new();
    let began = std::time::Instant::now();
    for seed in seed..seed + count {
        let case = Case::of_seed(seed);
        let told = case.tell(&scratch)?;
        for (pair, times) in &told.reached {
            *reached.entry(pair.clone()).or_default() += times;
        }
        let end = format!("{:?}", told.end);
        // Names and numbers differ from story to story, what happened does not.
        let word: String =
            end.split_whitespace().filter(|w| !w.contains(|c: char| c.is_ascii_digit())).collect::<Vec<_>>().join(" ");
        let word: String = word.chars().take(110).collect();
        *ends.entry(word).or_default() += 1;
        if count == 1 || !told.violations.is_empty() {
            bad += u32::from(!told.violations.is_empty());
            println!(
                "{case:?}\n{}\n{end} after {:?}, {} kills, {} calls",
                told.log.join("\n"),
                told.took,
                told.kills,
                told.calls
            );
            for violation in &told.violations {
                println!("seed {seed}: {violation}");
            }
        }
    }
    let faults: std::collections::BTreeSet<_> = reached.keys().map(|(fault, _)| fault).collect();
    let steps: std::collections::BTreeSet<_> = reached.keys().map(|(_, step)| step).collect();
    println!("{} faults, {} steps, {} pairs reached", faults.len(), steps.len(), reached.len());
    println!("{count} stories in {:?}, {bad} with violations: {ends:#?}", began.elapsed());
    let _ = std::fs::remove_dir_all(scratch);
    Ok(())
}

//! Tells the story of one seed: `cargo run -p kadence-sim --example tell -- SEED [COUNT]`.
#![expect(clippy::print_stdout, reason = "a program for people")]

use kadence_sim::explore::Case;

fn main() -> std::io::Result<()> {
    let mut args = std::env::args().skip(1).filter_map(|a| a.parse::<u64>().ok());
    let (seed, count) = (args.next().unwrap_or(0), args.next().unwrap_or(1));
    let scratch = std::env::temp_dir().join(format!("kadence-tell-{}", std::process::id()));
    let mut bad = 0;
    let mut ends = std::collections::BTreeMap::<String, u32>::new();
    let began = std::time::Instant::now();
    for seed in seed..seed + count {
        let case = Case::of_seed(seed);
        let told = case.tell(&scratch)?;
        let end = format!("{:?}", told.end);
        let word: String = end.chars().take_while(|c| *c != '{').take(60).collect();
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
    println!("{count} stories in {:?}, {bad} with violations: {ends:#?}", began.elapsed());
    let _ = std::fs::remove_dir_all(scratch);
    Ok(())
}

"""Defines the terms of the report's footnotes, with their sources."""

DEFINITIONS: dict[str, tuple[str, str]] = {
    "interval": (
        "95% interval",
        "2.5th to 97.5th percentile of the measure over resamples of patients (or of the groups by "
        "which the data were split) drawn with replacement. The resamples are the same for all "
        "models. It covers the sampling of the people tested, not that of the training run. "
        "Efron and Tibshirani, An Introduction to the Bootstrap, 1993.",
    ),
    "auroc": (
        "AUROC",
        "probability that a positive is scored above a negative, ties counting one half "
        "(Mann-Whitney). 0.5 is chance. Hanley and McNeil, Radiology 143, 1982.",
    ),
    "auprc": (
        "AUPRC",
        "average precision: precision at each distinct score, weighted by the gain in recall, "
        "without interpolation. Chance is the share of positives, so compare it only within one "
        "task. Davis and Goadrich, ICML 2006.",
    ),
    "c_index": (
        "C-index",
        "among pairs of people whose order of events is known, the share in which the higher risk "
        "went to the earlier event, ties counting one half. 0.5 is chance. Harrell et al., JAMA "
        "247, 1982.",
    ),
    "brier": (
        "Brier score",
        "mean squared distance between predicted probability and outcome; lower is better. "
        "Predicting the prevalence p for everyone gives p(1 \N{MINUS SIGN} p). Brier, Monthly "
        "Weather Review 78, 1950.",
    ),
    "brier_skill": (
        "Scaled Brier score",
        "one less the Brier score over that of predicting the held-out prevalence p for everyone, p(1 \N{MINUS SIGN} "
        "p): 0 for the prevalence, 1 for perfect predictions, below 0 for worse than the prevalence. Steyerberg et "
        "al., Epidemiology 21, 2010.",
    ),
    "calibration_slope": (
        "Calibration slope",
        "b of the logistic regression logit P(outcome) = a + b logit(predicted risk) on the held-out people; 1 is "
        "perfect, below 1 predictions are too extreme. Cox, Biometrika 45, 1958; Van Calster et al., BMC Medicine 17, "
        "2019.",
    ),
    "calibration_intercept": (
        "Calibration intercept",
        "a of the same regression with b fixed at 1, calibration in the large; 0 is perfect, above 0 risks are "
        "underestimated on average.",
    ),
    "mdd": (
        "Smallest difference",
        "1.96 + 0.84 = 2.80 standard errors of the paired difference under resampling of patients: a true difference "
        "of that size is called significant, without correction for several tests, in 80% of studies like this one. "
        "It describes the design and not the result.",
    ),
    "ece": (
        "ECE",
        "expected calibration error: distance between mean prediction and observed share within "
        "bins of the predictions of equal size, averaged with the bins' sizes as weights; lower is "
        "better. It is positive by chance even for perfect calibration. Naeini et al., AAAI 2015.",
    ),
    "ece_floor": (
        "ECE by chance",
        "the ECE that these predictions would show on average if they were perfectly calibrated.",
    ),
    "p_value": (
        "p",
        "two-sided, from the same resamples: twice the share in which the difference falls on the "
        "other side of zero. It cannot be smaller than two over the number of resamples, and it "
        "is not corrected for the number of comparisons.",
    ),
    "difference": (
        "Paired difference",
        "the measure of the first model minus that of the second on the same people, with its "
        "interval from the same resamples. Whether two models differ is judged by the interval of the "
        "difference, not by the overlap of two intervals.",
    ),
    "oracle": (
        "Oracle",
        "the true risk given the simulator's hidden state, which is not given to any model: an upper bound.",
    ),
    "late_fusion": (
        "Late fusion",
        "two models trained separately, one for each modality, and combined afterwards.",
    ),
    "stacked": (
        "Stacked predictions",
        "logistic, Cox or least-squares regression on the log-odds, log-hazards or values that other models predict, "
        "with weights of 0 or more, fitted on the tuning split, where the settings of those models were chosen too. "
        "Wolpert, Neural Networks 5, 1992; Breiman, Machine Learning 24, 1996.",
    ),
    "tabular": (
        "Tabular models",
        "models on hand-made features of the same input, without any pretraining: counts of every "
        "frequent code and ancestor over 30, 180 and 365 days and ever, time since, level and slope of "
        "values, summaries of the wearable over 1 to 90 days and all.",
    ),
    "kernel_machine": (
        "Kernel machine",
        "logistic, Cox or ridge regression with a Gaussian kernel, which finds risk that is not linear in what it is "
        "given: z, or hand-made features. Width of the kernel and penalty are chosen on the tuning split. "
        "Williams and Seeger, NeurIPS 2000.",
    ),
    "reliability": (
        "Reliability diagram",
        "predictions in up to ten bins of equal size: mean prediction against the share of "
        "positives, with Wilson's 95% interval (JASA 22, 1927), which takes predictions as "
        "independent and so is narrow where a person has several prediction times.",
    ),
    "pca": (
        "Principal components of z",
        "directions of largest variance of the latent state over the time points of all patients "
        "shown; the sign of a component carries no meaning.",
    ),
    "ece_corrected": (
        "Corrected ECE",
        "the calibration error under which the observed ECE is expected, without the part due to chance; an interval "
        "that begins at 0 is compatible with perfect calibration.",
    ),
    "ipcw": (
        "Weighted by the probability of a known label",
        "people censored before the horizon have no label and are left out above; here each known label counts with "
        "one over the Kaplan-Meier probability of being known, which estimates the measure for everybody.",
    ),
    "uno_c": (
        "Uno's C",
        "as the C-index, but each pair weighs one over the squared probability of not being censored, so that it does "
        "not depend on the censoring; up to the last horizon, or else the last time at which somebody in training is "
        "under observation. Someone with a competing event outlives every event. Uno et al., Statistics in Medicine "
        "30, 2011; Wolbers et al., Biostatistics 15, 2014.",
    ),
    "auc_t": (
        "AUC at a time",
        "probability that someone with the event by then was given a higher risk than someone followed beyond it, or "
        "someone whom death or another competing event met first; weighted for censoring. Uno et al., JASA 102, 2007; "
        "Blanche et al., Statistics in Medicine 32, 2013, definition 2.",
    ),
    "ibs": (
        "Brier score under censoring",
        "squared distance between the predicted probability of the event and status at a time, weighted for "
        "censoring; integrated over time up to the last horizon. Lower is better; the null predicts the Kaplan-Meier, "
        "or under competing events the Aalen-Johansen, curve of the training split. Graf et al., Statistics in "
        "Medicine 18, 1999; Schoop et al., Biometrical Journal 53, 2011.",
    ),
    "rmse": (
        "RMSE, MAE, R\N{SUPERSCRIPT TWO}",
        "root of the mean squared error and mean absolute error in the unit of the target; R\N{SUPERSCRIPT TWO} is "
        "one less the squared error over that of the mean.",
    ),
    "net_benefit": (
        "Net benefit",
        "true positives per person less false positives, the latter weighted by the odds of the threshold, t / "
        "(1 \N{MINUS SIGN} t). Treating nobody gives zero. It assumes calibrated risks. Vickers and Elkin, "
        "Medical Decision Making 26, 2006; under censoring, Vickers et al., 2008.",
    ),
    "confusion": (
        "Confusion matrix",
        "prediction times with a risk at or above the threshold are called positive. The threshold is the largest at "
        "which the tuning split reaches the wanted sensitivity; that of the held-out people differs from it.",
    ),
    "q_value": (
        "q",
        "smallest false discovery rate at which the test would be called significant, over its family of tests, which "
        "a note below the table names with its size. Families: of one measure, all comparisons of models over all "
        "tasks (primary); of one measure, all gaps between groups; all perturbations; all hidden signals; all tests of "
        "the latents' geometry. The oracle and the mean of the training split are bounds, in no family. Benjamini and "
        "Hochberg, JRSS B 57, 1995.",
    ),
    "target_trial": (
        "Target trial",
        "the study that the labels stand for, by the parts that its protocol would have. Hernan and Robins, American "
        "Journal of Epidemiology 183, 2016. Nobody is treated here: predictions are of what happens without them.",
    ),
    "p_permutation": (
        "p by permutation",
        "one-sided: share of permutations with an MMD\N{SUPERSCRIPT TWO} at least as large, the observed one counted "
        "among them.",
    ),
    "bootstrap_z": (
        "Bootstrap z",
        "the difference over its standard deviation under resampling of patients. It grows with their number: a "
        "measure of evidence, not of effect. The paper's Cohen's d over bootstrap resamples would be this.",
    ),
    "cohens_d": (
        "Cohen's d over seeds",
        "mean difference between two models over its standard deviation, seed by seed on the same people (paired, "
        "d_z); only where both were trained with the same three seeds or more (config.seeds). It tells how stable the "
        "difference is over training runs, not over people. Lakens, Frontiers in Psychology 4, 2013.",
    ),
    "seed_sd": (
        "SD over seeds",
        "standard deviation of the measure between training runs that differ in their seed alone, on the same people.",
    ),
    "subgroup": (
        "Subgroups",
        "of the held-out people at the time of the prediction. Gaps are to the group with most prediction times, on "
        "the same resamples. Groups of few patients, or of few of either outcome, are suppressed.",
    ),
    "robustness": (
        "Robustness",
        "probes fitted on clean records, applied to perturbed ones; the change is paired with the clean records.",
    ),
    "fractions": (
        "Label efficiency",
        "models fitted to the labels of a share of the training patients, drawn with the cohort's share of positives "
        "and nested; means over the draws, intervals over held-out patients. What a model chooses, it chooses on the "
        "whole tuning split. Differences are paired: the first model less the one of the row, on the same share.",
    ),
    "kernel": (
        "Time kernel",
        "the learned factor K(d) by which attention to a token d days earlier is multiplied, relative to d = 0.",
    ),
    "kaplan_meier": (
        "Kaplan-Meier curves",
        "share without the event over time in quartiles of the predicted risk, with 95% bands over resamples of "
        "patients, drawn while ten prediction times are under observation. Kaplan and Meier, JASA 53, 1958. With "
        "competing events the share with the event: Aalen and Johansen, Scandinavian Journal of Statistics 5, 1978.",
    ),
    "geometry": (
        "Geometry",
        "MMD\N{SUPERSCRIPT TWO}: unbiased, Gaussian kernel of the median distance between training latents; zero where "
        "two sets of latents are distributed alike. Adjacent: 30-day slices of the same people; class: with against "
        "without the outcome. Effective rank: exponential of the entropy of the spectrum. Lipschitz: movement of "
        "whitened z per day.",
    ),
    "ledger": (
        "What z holds",
        "ridge regression from z to each feature of the table that tabular models are given, fitted on training people "
        "where the feature is known, strength chosen on tuning people: share of the held-out people's variance that it "
        "explains (AUROC of facts that are there or not). Features are clipped to the training quantiles of 1 and 99%; "
        "counts and times since are logarithms.",
    ),
    "posterior": (
        "Posterior of z",
        "z is drawn from its posterior, and predictions are averaged over draws. Entropies as for Monte Carlo dropout; "
        "a rank correlation (Spearman) with squared errors is positive where uncertain predictions are wrong more "
        "often. Events and steps hidden from the model are decoded from draws of the state at their times. Coverage: "
        "share of events whose code is in the smallest set of codes with at least that probability, and of steps in "
        "the central interval; at the level itself where the model is calibrated, above it for sets, which are whole "
        "codes. Distance of frequencies: half the summed absolute difference (total variation).",
    ),
    "whitened_distance": (
        "Distance in whitened z",
        "Euclidean distance after z is turned and scaled so that each direction has a standard deviation of 1 over the "
        "training latents. The paper (section 4.5) names jumps and drifts without a definition; this one is ours.",
    ),
    "precursor": (
        "Precursors",
        "mean absolute change of the logit when a signal is hidden, as if it had not been worn, in a period before an "
        "event; p of the paired difference to the control, from resampled people. Ours; the paper (section 4.6) names "
        "heart-rate variability and activity 7 to 30 days before an event.",
    ),
    "drug_start": (
        "Start of a drug",
        "each person's mean of the signal in weeks around their first drug code, less their mean over the 28 days "
        "before, averaged over people who wore a device before and after it. Ours; the paper (section 4.7) names it "
        "without a definition.",
    ),
    "integrated_gradients": (
        "Integrated gradients",
        "parts of the probe's logit, against the same record without contents: codes as the masked token, signals at "
        "the average of the training split. The parts sum to the difference of the two logits up to the completeness "
        "gap, the error of the quadrature. Sundararajan et al., ICML 2017.",
    ),
    "rollout": (
        "Attention rollout",
        "share of each token that reaches the prediction time by the attention weights alone, heads averaged, half of "
        "each layer passed on unchanged. The rest, up to 1, is the query itself. Abnar and Zuidema, ACL 2020. "
        "Attention is no evidence of causes.",
    ),
    "counterfactual": (
        "Perturbed records",
        "logit of the same probe from the record with a part hidden or changed, less that from the unchanged record. "
        "Hidden parts count as not recorded. A property of the model, not an effect of a treatment.",
    ),
}

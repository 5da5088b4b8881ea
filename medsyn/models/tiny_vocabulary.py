"""The text that the embedded tokenizer's byte pairs are learnt from: captions of phantoms and words of radiology."""

from __future__ import annotations

from collections.abc import Iterator

from medsyn.data.phantoms import FINDINGS, KINDS, draw_phantom

# The words that captions and reports about the five modalities use most; without them a real caption would fall
# into single letters and be cut at 77 tokens.
_WORDS = """
optical coherence tomography oct macular b scan retina retinal layers foveal fovea foveola depression choroid
choroidal vasculature neovascular membrane drusen age related macular degeneration early late stage epiretinal
vitreous vitreomacular interface disease central serous artery vein occlusion diabetic edema oedema cystoid
subretinal intraretinal fluid detachment pigment epithelium normal emmetropic myopic eye fundus photograph
photography retinopathy proliferative non mild moderate severe no apparent hard exudates soft cotton wool spots
microaneurysms haemorrhage haemorrhages hemorrhage hemorrhages optic disc cup vessel vessels arcade high low
risk near the macula centre center of and in with without image visible glaucoma hypertensive healthy clear
patient quality good poor acceptable excellent chest x ray radiograph frontal lateral posteroanterior
anteroposterior pa ap view supine erect lung lungs field fields parenchyma infiltrate infiltrates infiltration
consolidation opacity opacities ground glass bilateral unilateral upper middle lower lobe lobes zone pneumonia
viral bacterial covid 19 sars positive negative pleural effusion thickening pneumothorax atelectasis
cardiomegaly emphysema fibrosis hernia nodule nodules mass masses mediastinum hilar hilum rib ribs clavicle
diaphragm trachea catheter tube line finding findings consistent suggestive of computed tomography ct axial
coronal sagittal slice plane series window level width abdomen abdominal pelvis pelvic brain head neck thorax
kidney renal liver spleen pancreas bladder aorta tumour tumor cohort iv contrast enhanced enhancing post pre
arterial venous phase soft tissue bone lung magnetic resonance imaging mri mr t1 t2 weighted flair diffusion
dynamic dwi adc gadolinium glioma meningioma pituitary adenoma lesion metastasis stroke ischemic infarct
infarction white grey gray matter ventricle ventricles cortex cerebellum brainstem temporal parietal frontal
occipital cerebral hemisphere left right breast fibroglandular density irregular spiculated cyst cysts quadrant
outer inner axillary lymph node spine cervical thoracic lumbar vertebra vertebral cord disc herniation stenosis
i spy through young adult female male year old years woman man examination study showing shows demonstrates
anatomy anatomical structure regular large small multiple single solid ring lesions area areas region bright
dark hyperintense hypointense high resolution motion noise noisy blurred artifact artefact exposure
"""


def corpus() -> Iterator[str]:
    """Lines of text: every word of the list, and captions of every kind, finding and side of the phantoms."""
    for line in _WORDS.strip().splitlines():
        for _ in range(4):
            yield line
    for kind in KINDS:
        for finding in FINDINGS[kind]:
            for index in range(12):
                yield draw_phantom(kind, index, seed=0, finding=finding).caption

"""The embedded default: SD v1.5's classes, small enough for a laptop's CPU.

UNet2DConditionModel, AutoencoderKL, CLIPTextModel and CLIPTokenizer with a few million parameters, saved as an
ordinary diffusers directory, so that it exercises every line that loads, trains or samples SD v1.5. The
pre-trained weights in `medsyn/models/embedded` were made by `medsyn.training.pretrain`.

The embedded tokenizer's byte pairs are learnt from `corpus`: captions of phantoms and words of radiology.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import CLIPTextConfig, CLIPTextModel

from medsyn.data.phantoms.phantom import FINDINGS, KINDS, draw_phantom
from medsyn.models import pipeline_folder

TEXT_WIDTH = 64
LATENT_CHANNELS = 4
VOCABULARY_SIZE = 2048
START, END = "<|startoftext|>", "<|endoftext|>"

# The words that captions and reports about the five modalities use most; without them a real caption would break
# up into single letters and be truncated at 77 tokens.
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


def save_tokenizer(directory: Path) -> tuple[int, int]:
    """Write CLIP's byte-pair files (vocab.json, merges.txt) learnt from the embedded corpus.

    Returns:
        The vocabulary's size and the id of the end token.
    """
    learner = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    learner.pre_tokenizer = pre_tokenizers.Whitespace()
    # CLIP's tokenizer reads any UTF-8 text as bytes written with 256 printable letters, alone or ending a word
    letters = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY_SIZE, end_of_word_suffix="</w>", initial_alphabet=sorted(letters), show_progress=False
    )
    learner.train_from_iterator([line.lower() for line in corpus()], trainer)
    learnt = json.loads(learner.to_str())["model"]
    merges = [" ".join(pair) if isinstance(pair, list) else pair for pair in learnt["merges"]]
    tokens = sorted(letters) + [letter + "</w>" for letter in sorted(letters)]
    tokens += ["".join(merge.split(" ")) for merge in merges] + [START, END]
    vocabulary = {token: index for index, token in enumerate(dict.fromkeys(tokens))}
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False))
    (directory / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n", encoding="utf-8")
    (directory / "special_tokens_map.json").write_text(
        json.dumps({"bos_token": START, "eos_token": END, "unk_token": END, "pad_token": END})
    )
    (directory / "tokenizer_config.json").write_text(
        json.dumps(
            {
                "tokenizer_class": "CLIPTokenizer",
                "model_max_length": 77,
                "bos_token": START,
                "eos_token": END,
                "unk_token": END,
                "pad_token": END,
            }
        )
    )
    return len(vocabulary), vocabulary[END]


def make_text_encoder(vocabulary_size: int, end_token: int) -> CLIPTextModel:
    """A two-layer CLIP text model."""
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=vocabulary_size,
            hidden_size=TEXT_WIDTH,
            intermediate_size=2 * TEXT_WIDTH,
            projection_dim=TEXT_WIDTH,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=77,
            bos_token_id=end_token - 1,
            eos_token_id=end_token,
            pad_token_id=end_token,
        )
    )


def make_vae() -> AutoencoderKL:
    """An autoencoder that turns 64 x 64 pixels into 4 x 16 x 16 latents."""
    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        latent_channels=LATENT_CHANNELS,
        block_out_channels=(16, 32, 64),
        layers_per_block=1,
        norm_num_groups=8,
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        sample_size=64,
    )


def make_unet() -> UNet2DConditionModel:
    """A UNet with text attention at 8 x 8 and 4 x 4 latents."""
    return UNet2DConditionModel(
        sample_size=16,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        block_out_channels=(48, 80, 96),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=TEXT_WIDTH,
        attention_head_dim=4,
        norm_num_groups=16,
    )


def make_scheduler(prediction_type: str = "v_prediction") -> DDIMScheduler:
    """SD's scaled-linear schedule; v-prediction learns faster at this size (92 against 83 % of 12 classes)."""
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        num_train_timesteps=1000,
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type=prediction_type,
    )


def build_random(directory: Path, seed: int = 0, prediction_type: str = "v_prediction") -> Path:
    """Save an untrained tiny model as a diffusers directory; same seed, same weights. Returns `directory`."""
    directory.mkdir(parents=True, exist_ok=True)
    vocabulary_size, end_token = save_tokenizer(directory / "tokenizer")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        make_text_encoder(vocabulary_size, end_token).save_pretrained(directory / "text_encoder")
        make_vae().save_pretrained(directory / "vae")
        make_unet().save_pretrained(directory / "unet")
    make_scheduler(prediction_type).save_pretrained(directory / "scheduler")
    pipeline_folder.write_index(directory)
    return directory


def corpus() -> Iterator[str]:
    """Lines of text: every word in the list, and captions of phantoms of every kind, finding and side."""
    for line in _WORDS.strip().splitlines():
        for _ in range(4):
            yield line
    for kind in KINDS:
        for finding in FINDINGS[kind]:
            for index in range(12):
                yield draw_phantom(kind, index, seed=0, finding=finding).caption

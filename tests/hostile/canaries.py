"""Secrets that must appear in no output."""

CANARIES = {
    "WANDB_API_KEY": "canary0" * 5 + "wandb",
    "HF_TOKEN": "hf_canaryHfTokenCanary",
    "HUGGING_FACE_HUB_TOKEN": "hf_canaryHubTokenCanary",
    "OPENAI_API_KEY": "sk-canaryOpenAi",
    "AWS_SECRET_ACCESS_KEY": "canaryAwsSecretCanary",
    "HARNESS_ENDPOINT_KEY": "canaryEndpointKey",
    "HTTPS_PROXY": "http://canaryUser:canaryProxyPassword@127.0.0.1:9",
}
